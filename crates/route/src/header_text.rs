//! Values that rules give headers: plain, or made of what is known of a request and its reply, in
//! Envoy's words (`%REQ(x-user?x-id):8%`).

use http::{HeaderMap, HeaderName, HeaderValue};

/// A value for a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderText {
    /// Always the same.
    Plain(HeaderValue),
    /// Put together for each message.
    Made(Vec<Piece>),
}

/// A part of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<F = Fact> {
    /// As written.
    Text(String),
    /// What is known, its first bytes where there is a limit.
    Fact(F, Option<usize>),
}

/// What values may be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A header of the request, or else the other one.
    Request(Field, Option<Field>),
    /// A header of the reply, or else the other one.
    Reply(Field, Option<Field>),
    /// When the request came, in a form of `strftime`; as in logs where there is none.
    StartTime(Option<String>),
    /// One that takes no argument.
    Plain(PlainFact),
}

/// A header, or one of the parts of a request's first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// A header.
    Header(HeaderName),
    /// `:method`.
    Method,
    /// `:path`, with or without its query.
    Path {
        /// With it.
        query: bool,
    },
    /// `:authority`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// `:status`.
    Status,
}

macro_rules! plain_facts {
    ($($(#[doc = $doc:literal])+ $name:ident = $($word:literal)|+;)+) => {
        /// Facts that take no argument.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum PlainFact { $($(#[doc = $doc])+ $name,)+ }

        impl PlainFact {
            fn parse(word: &str) -> Option<Self> {
                Some(match word {
                    $($($word)|+ => Self::$name,)+
                    _ => return None,
                })
            }
        }
    };
}

plain_facts! {
    /// The caller's address and port.
    Caller = "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS";
    /// The caller's address.
    CallerIp = "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT";
    /// The caller's port.
    CallerPort = "DOWNSTREAM_REMOTE_PORT" | "DOWNSTREAM_DIRECT_REMOTE_PORT";
    /// The caller's identity.
    CallerIdentity = "DOWNSTREAM_PEER_URI_SAN";
    /// Address and port that were called.
    Called = "DOWNSTREAM_LOCAL_ADDRESS";
    /// The address that was called.
    CalledIp = "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT";
    /// The port that was called.
    CalledPort = "DOWNSTREAM_LOCAL_PORT";
    /// This proxy's own identity.
    OwnIdentity = "DOWNSTREAM_LOCAL_URI_SAN";
    /// Version of HTTP.
    Protocol = "PROTOCOL";
    /// Id of the request.
    RequestId = "STREAM_ID";
    /// Name of the rule.
    Route = "ROUTE_NAME";
    /// Name of this proxy's pod.
    Hostname = "HOSTNAME";
    /// Address and port of the endpoint; for replies.
    Endpoint = "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS";
    /// Address of the endpoint; for replies.
    EndpointIp = "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT";
    /// The destination; for replies.
    Cluster = "UPSTREAM_CLUSTER";
    /// Status of the reply.
    Status = "RESPONSE_CODE";
    /// Why the reply is what it is.
    Details = "RESPONSE_CODE_DETAILS";
    /// Flags of the reply.
    Flags = "RESPONSE_FLAGS";
}

/// Who knows what values are made of.
pub trait Facts {
    /// What is known; `None`: nothing. `headers` are those of the message that is edited, as they are
    /// so far.
    fn fact(&self, fact: &Fact, headers: &HeaderMap) -> Option<String>;
}

/// Nothing is known.
impl Facts for () {
    fn fact(&self, _: &Fact, _: &HeaderMap) -> Option<String> {
        None
    }
}

impl From<HeaderValue> for HeaderText {
    fn from(value: HeaderValue) -> Self {
        Self::Plain(value)
    }
}

impl HeaderText {
    /// Reads a value as it is written. What is not understood of it stands for itself: see
    /// [`Self::problem`].
    ///
    /// # Errors
    /// A sentence, if it could be no header's value.
    pub fn compile(text: &str) -> Result<Self, &'static str> {
        let value = HeaderValue::from_str(text).map_err(|_| "not a header value")?;
        Ok(match pieces(text, fact) {
            Ok(pieces) => match &pieces[..] {
                [] => Self::Plain(value),
                [Piece::Text(text)] => {
                    Self::Plain(HeaderValue::from_str(text).map_err(|_| "not a header value")?)
                }
                _ => Self::Made(pieces),
            },
            Err(_) => Self::Plain(value),
        })
    }

    /// What is not understood of a value as it is written.
    #[must_use]
    pub fn problem(text: &str) -> Option<String> {
        pieces(text, fact).err()
    }

    /// The value for a message; `None` where nothing is known, and so nothing is to be written.
    #[must_use]
    pub fn value(&self, facts: &dyn Facts, headers: &HeaderMap) -> Option<HeaderValue> {
        let pieces = match self {
            Self::Plain(value) => return Some(value.clone()),
            Self::Made(pieces) => pieces,
        };
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(own) => text.push_str(own),
                Piece::Fact(fact, most) => {
                    let known = facts.fact(fact, headers).unwrap_or_default();
                    let most = most.unwrap_or(usize::MAX);
                    let end = known.floor_char_boundary(most.min(known.len()));
                    text.push_str(&known[..end]);
                }
            }
        }
        let value = HeaderValue::from_str(&text).ok();
        value.filter(|value| !value.is_empty())
    }
}

/// The parts of a text; `fact` knows what a word and its argument mean.
pub(crate) fn pieces<F>(
    text: &str,
    fact: impl Fn(&str, Option<&str>) -> Result<F, String>,
) -> Result<Vec<Piece<F>>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            plain.push('%');
            rest = after;
            continue;
        }
        let (piece, after) = command(after, &fact)?;
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(piece);
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// What follows a `%`, to the `%` that ends it.
fn command<F>(
    text: &str,
    fact: impl Fn(&str, Option<&str>) -> Result<F, String>,
) -> Result<(Piece<F>, &str), String> {
    let name_ends = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let end = text.find(name_ends).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let unended = || format!("%{name} has no % at its end");
    let (argument, rest) = match rest.strip_prefix('(') {
        None => (None, rest),
        // Times have % in their form, so what counts is the bracket.
        Some(rest) => {
            let (argument, rest) = rest.split_once(')').ok_or_else(unended)?;
            (Some(argument), rest)
        }
    };
    let (most, rest) = match rest.strip_prefix(':') {
        None => (None, rest),
        Some(rest) => {
            let (number, _) = rest.split_once('%').ok_or_else(unended)?;
            let most = number.parse::<usize>();
            let most = most.map_err(|_| format!("%{name}: {number:?} is not a length"))?;
            (Some(most), &rest[number.len()..])
        }
    };
    let rest = rest.strip_prefix('%').ok_or_else(unended)?;
    let fact = fact(name, argument)?;
    Ok((Piece::Fact(fact, most), rest))
}

pub(crate) fn fact(name: &str, argument: Option<&str>) -> Result<Fact, String> {
    let unknown = || format!("%{name}% is not known");
    match (name, argument) {
        ("REQ" | "RESP" | "REQ_WITHOUT_QUERY", Some(names)) => {
            let reply = name == "RESP";
            let with_query = name == "REQ";
            let field = |text: &str| {
                field(text, with_query).ok_or_else(|| format!("%{name}: {text:?} is no header"))
            };
            let (first, other) = match names.split_once('?') {
                Some((first, other)) => (first, Some(field(other)?)),
                None => (names, None),
            };
            let first = field(first)?;
            Ok(if reply {
                Fact::Reply(first, other)
            } else {
                Fact::Request(first, other)
            })
        }
        ("START_TIME", form) => Ok(Fact::StartTime(
            form.filter(|f| !f.is_empty()).map(str::to_owned),
        )),
        (_, None) => PlainFact::parse(name).map(Fact::Plain).ok_or_else(unknown),
        _ => Err(unknown()),
    }
}

fn field(text: &str, query: bool) -> Option<Field> {
    Some(match text.to_ascii_lowercase().as_str() {
        ":method" => Field::Method,
        ":path" => Field::Path { query },
        ":authority" | "host" => Field::Authority,
        ":scheme" => Field::Scheme,
        ":status" => Field::Status,
        other => Field::Header(HeaderName::from_bytes(other.as_bytes()).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Few;

    impl Facts for Few {
        fn fact(&self, fact: &Fact, headers: &HeaderMap) -> Option<String> {
            let of = |field: &Field| match field {
                Field::Header(name) => {
                    let value = headers.get(name)?;
                    Some(value.to_str().ok()?.to_owned())
                }
                _ => None,
            };
            match fact {
                Fact::Request(one, other) => of(one).or_else(|| other.as_ref().and_then(of)),
                Fact::StartTime(form) => form.clone(),
                Fact::Plain(PlainFact::Protocol) => Some("HTTP/1.1".into()),
                _ => None,
            }
        }
    }

    fn made(text: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", HeaderValue::from_static("annabel"));
        let value = HeaderText::compile(text).unwrap().value(&Few, &headers)?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn values_are_made_of_what_is_known() {
        for (text, expect) in [
            ("plain", Some("plain")),
            ("", Some("")),
            ("100%%", Some("100%")),
            ("%PROTOCOL%", Some("HTTP/1.1")),
            ("<%REQ(X-User)%>", Some("<annabel>")),
            ("%REQ(x-none?x-user):4%!", Some("anna!")),
            ("%REQ(x-user):40%", Some("annabel")),
            ("%START_TIME(%Y/%m)%-", Some("%Y/%m-")),
            // Nothing is known.
            ("%REQ(x-none)%", None),
            ("a%RESP(x)%b", Some("ab")),
        ] {
            assert_eq!(made(text).as_deref(), expect, "{text}");
            assert_eq!(HeaderText::problem(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_stands_for_itself_and_is_told() {
        for (text, problem) in [
            ("50% off", "% has no % at its end"),
            ("%REQ(x", "%REQ has no % at its end"),
            ("%REQ(x):y%", "%REQ: \"y\" is not a length"),
            ("%REQ(x y)%", "%REQ: \"x y\" is no header"),
            ("%DYNAMIC_METADATA(a:b)%", "%DYNAMIC_METADATA% is not known"),
            ("%PROTOCOL(x)%", "%PROTOCOL% is not known"),
        ] {
            assert_eq!(
                HeaderText::problem(text).as_deref(),
                Some(problem),
                "{text}"
            );
            assert_eq!(made(text).as_deref(), Some(text));
        }
        assert!(HeaderText::compile("a\nb").is_err());
    }
}
