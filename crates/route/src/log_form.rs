//! How the line of a request or connection is written, in Envoy's words
//! (`%REQ(:METHOD)% %RESPONSE_CODE% %DURATION%`): as text, or as a JSON object.

use isobar_proto::isobar::v1 as proto;

use crate::header_text::{Fact, Piece, fact, pieces};

/// How lines are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogForm {
    /// One text.
    Text(Vec<Piece<LogFact>>),
    /// An object: names, and what stands under each.
    Json(Vec<(String, Vec<Piece<LogFact>>)>),
}

/// What a line may be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogFact {
    /// What values of headers may be made of too.
    Message(Fact),
    /// Bytes of the request's body, or of the connection.
    Received,
    /// Bytes of the response's body, or back over the connection.
    Sent,
    /// Milliseconds from the head, or from the start, to the end.
    Duration,
    /// Milliseconds until the endpoint's answer began.
    EndpointTime,
    /// What went wrong on the way on.
    Failure,
    /// What Envoy knows and we do not.
    Nothing,
}

/// What is done with lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Lines {
    /// Written as the waypoint does by itself: Envoy's own default form.
    #[default]
    Usual,
    /// None.
    Off,
    /// Written so.
    Form(LogForm),
}

/// Names and words of a JSON line where none are given: Istio's.
pub const JSON_LINE: &[(&str, &str)] = &[
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    (
        "upstream_service_time",
        "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    ),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];

impl LogForm {
    /// Reads a line's text. The end of a line at its end is left out: every line has one.
    ///
    /// # Errors
    /// A sentence, with the word that is not understood.
    pub fn text(text: &str) -> Result<Self, String> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        Ok(Self::Text(pieces(text, log_fact)?))
    }

    /// Reads the names and words of a JSON line.
    ///
    /// # Errors
    /// A sentence, with the name and the word that is not understood.
    pub fn json<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let read = fields.into_iter().map(|(name, text)| {
            let pieces = pieces(text, log_fact).map_err(|error| format!("{name}: {error}"))?;
            Ok((name.to_owned(), pieces))
        });
        Ok(Self::Json(read.collect::<Result<_, String>>()?))
    }
}

impl Lines {
    /// As a control plane tells it. What is not understood, because it is of another version, changes
    /// nothing about lines: they may not stop a waypoint.
    #[must_use]
    pub fn compile(from: Option<&proto::AccessLog>) -> Self {
        let Some(from) = from else {
            return Self::Usual;
        };
        let fields = from.json.iter();
        let form = match (from.off, &*from.text, &from.json[..]) {
            (true, ..) => return Self::Off,
            (_, "", []) => return Self::Usual,
            (_, text, []) => LogForm::text(text),
            _ => LogForm::json(fields.map(|one| (&*one.name, &*one.text))),
        };
        form.map_or(Self::Usual, Self::Form)
    }
}

fn log_fact(name: &str, argument: Option<&str>) -> Result<LogFact, String> {
    const TIME: &str = "x-envoy-upstream-service-time";
    Ok(match (name, argument) {
        ("BYTES_RECEIVED", None) => LogFact::Received,
        ("BYTES_SENT", None) => LogFact::Sent,
        ("DURATION", None) => LogFact::Duration,
        ("UPSTREAM_TRANSPORT_FAILURE_REASON", None) => LogFact::Failure,
        (
            "CONNECTION_TERMINATION_DETAILS" | "REQUESTED_SERVER_NAME" | "UPSTREAM_LOCAL_ADDRESS",
            None,
        ) => LogFact::Nothing,
        ("RESP", Some(header)) if header.eq_ignore_ascii_case(TIME) => LogFact::EndpointTime,
        ("RESP", Some(header)) => {
            return Err(format!(
                "%RESP({header})%: of the headers of replies lines have {TIME} only"
            ));
        }
        _ => LogFact::Message(fact(name, argument)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header_text::{Field, PlainFact};

    #[test]
    fn lines_are_made_of_more_than_headers() {
        let form = LogForm::text("%RESPONSE_CODE% in %DURATION% ms\n").unwrap();
        let status = LogFact::Message(Fact::Plain(PlainFact::Status));
        let expect = [
            Piece::Fact(status, None),
            Piece::Text(" in ".into()),
            Piece::Fact(LogFact::Duration, None),
            Piece::Text(" ms".into()),
        ];
        assert_eq!(form, LogForm::Text(expect.into()));
        let form = LogForm::json([("m", "%REQ(:METHOD)%")]).unwrap();
        let method = LogFact::Message(Fact::Request(Field::Method, None));
        let expect = vec![("m".to_owned(), vec![Piece::Fact(method, None)])];
        assert_eq!(form, LogForm::Json(expect));
        assert!(LogForm::json(JSON_LINE.iter().copied()).is_ok());
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, word) in [
            ("%RESP(server)%", "%RESP(server)%"),
            ("%FILTER_STATE(a)%", "%FILTER_STATE%"),
            ("50%", "no % at its end"),
        ] {
            let error = LogForm::text(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let error = LogForm::json([("a", "%NO%")]).unwrap_err();
        assert_eq!(error, "a: %NO% is not known");
    }

    #[test]
    fn what_a_control_plane_says_counts_as_far_as_it_is_understood() {
        let told = |off, text: &str| proto::AccessLog {
            off,
            text: text.to_owned(),
            json: Vec::new(),
        };
        assert_eq!(Lines::compile(None), Lines::Usual);
        assert_eq!(Lines::compile(Some(&told(false, ""))), Lines::Usual);
        assert_eq!(Lines::compile(Some(&told(true, "x"))), Lines::Off);
        let form = LogForm::text("x").unwrap();
        assert_eq!(Lines::compile(Some(&told(false, "x"))), Lines::Form(form));
        assert_eq!(Lines::compile(Some(&told(false, "%NEW%"))), Lines::Usual);
        let json = proto::AccessLog {
            json: vec![proto::LogField {
                name: "a".into(),
                text: "b".into(),
            }],
            ..proto::AccessLog::default()
        };
        let form = LogForm::json([("a", "b")]).unwrap();
        assert_eq!(Lines::compile(Some(&json)), Lines::Form(form));
    }
}
