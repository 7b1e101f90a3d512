//! The one normalised view of a request's path and host.
//!
//! Policy, routing, rewriting, log and what is forwarded all use these values, so that a policy can
//! never see another path than the application does. How far paths are normalised the mesh says
//! ([`Normalization`]).

use std::borrow::Cow;

/// Why a request target cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A control character, a space, a raw non-ASCII byte, a fragment or an encoded NUL.
    #[error("the path holds a character that is not allowed")]
    Character,
    /// The path does not start with a slash.
    #[error("the path does not start with a slash")]
    NotAbsolute,
    /// A rewrite put a rule's words and the request's together to a segment `..`.
    #[error("the rewritten path climbs")]
    Climbs,
}

/// How far paths are normalised before anything looks at them; the words are Istio's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Normalization {
    /// They stay as they came.
    None,
    /// Dot segments are resolved, also those with parameters (`..;x`), unreserved characters decoded,
    /// backslashes are slashes; doubled slashes stay.
    #[default]
    Base,
    /// After that several slashes in a row are one.
    MergeSlashes,
    /// Before that escaped slashes and backslashes (`%2f`, `%5c`) are decoded.
    DecodeAndMergeSlashes,
}

impl Normalization {
    /// As a waypoint is told; `None` for what this version does not know.
    pub(crate) fn compile(from: i32) -> Option<Self> {
        use isobar_proto::isobar::v1::PathNormalization as Wire;
        Some(match Wire::try_from(from).ok()? {
            Wire::Base => Self::Base,
            Wire::None => Self::None,
            Wire::MergeSlashes => Self::MergeSlashes,
            Wire::DecodeAndMergeSlashes => Self::DecodeAndMergeSlashes,
        })
    }
}

/// Normalises a path without its query.
///
/// # Errors
/// When the path holds what no honest client sends; the request is then refused with 400.
pub fn normalise(path: &str, how: Normalization) -> Result<Cow<'_, str>, PathError> {
    // Without a way out in between, several octets are looked at together.
    let bad = |found, b: u8| found | (b <= b' ') | (b >= 0x7f) | (b == b'#');
    if path.bytes().fold(false, bad) {
        return Err(PathError::Character);
    }
    if !path.starts_with(['/', '\\']) {
        return Err(PathError::NotAbsolute);
    }
    let merges = match how {
        Normalization::None if path.starts_with('\\') => return Err(PathError::NotAbsolute),
        Normalization::None if path.contains("%00") => return Err(PathError::Character),
        Normalization::None => return Ok(Cow::Borrowed(path)),
        Normalization::Base => false,
        Normalization::MergeSlashes | Normalization::DecodeAndMergeSlashes => true,
    };
    if is_normal(path) && !(merges && path.contains("//")) {
        return Ok(Cow::Borrowed(path));
    }
    let plain = match how {
        Normalization::DecodeAndMergeSlashes => Cow::Owned(decode_slashes(path)),
        _ => Cow::Borrowed(path),
    };
    let resolved = resolve_dots(&decode_unreserved(&plain)?);
    Ok(Cow::Owned(match merges {
        true => merge_slashes(&resolved),
        false => resolved,
    }))
}

/// Normalises what a rewrite made of a path that was normal: `/pub../x` with `/public/` for `/pub` must
/// not leave as `/public/../x`, which an application reads as `/x`. `words` are what the rule itself
/// wrote; a query in them stays as it is, and so do doubled slashes, as in Envoy. Where paths are not
/// normalised, neither is what is made of them.
///
/// # Errors
/// When the path climbs where the rule does not, or holds an encoded NUL; the request is then refused
/// with 400.
pub fn rewritten(made: String, words: &str, how: Normalization) -> Result<String, PathError> {
    let (path, query) = made.split_at(made.find('?').unwrap_or(made.len()));
    // What is no path is for whoever sends it to refuse.
    let done = how == Normalization::None || is_normal(path);
    if done || !path.starts_with(['/', '\\']) {
        return Ok(made);
    }
    let decoded = decode_unreserved(path)?;
    let own = decode_unreserved(words)?;
    if climbs(&decoded) > climbs(&own) {
        return Err(PathError::Climbs);
    }
    Ok(resolve_dots(&decoded) + query)
}

fn climbs(path: &str) -> usize {
    path.split('/')
        .filter(|one| without_parameters(one) == "..")
        .count()
}

/// Applications take `..;x` for `..`: parameters of a segment are no part of its name (RFC 3986 §3.3).
fn without_parameters(segment: &str) -> &str {
    segment.split_once(';').map_or(segment, |(name, _)| name)
}

fn is_normal(path: &str) -> bool {
    let mut before = 0;
    path.bytes().fold(true, |normal, b| {
        let dot = (before == b'/') & (b == b'.');
        before = b;
        normal & (b != b'%') & (b != b'\\') & !dot
    })
}

fn decode_slashes(path: &str) -> String {
    let both = path.replace("%2f", "/").replace("%2F", "/");
    both.replace("%5c", "/").replace("%5C", "/")
}

fn merge_slashes(path: &str) -> String {
    let mut before = ' ';
    let kept = path.chars().filter(|now| {
        let again = *now == '/' && before == '/';
        before = *now;
        !again
    });
    kept.collect()
}

fn decode_unreserved(path: &str) -> Result<String, PathError> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    let mut at = 0;
    // Where in `out` the last decoded character is.
    let mut decoded = None;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\\' => out.push('/'),
            b'%' => match hex_pair(bytes.get(at..at + 2)) {
                Some(0) => return Err(PathError::Character),
                Some(value)
                    if value.is_ascii_alphanumeric()
                        || matches!(value, b'-' | b'.' | b'_' | b'~') =>
                {
                    decoded = Some(out.len());
                    out.push(char::from(value));
                    at += 2;
                }
                _ => out.push('%'),
            },
            other => out.push(char::from(other)),
        }
        guard_new_escape(&mut out, decoded);
    }
    Ok(out)
}

/// A percent sign that decoded characters would complete to an escape becomes `%25`, as browsers and
/// Envoy do: `/%%36%31dmin` must not leave as `/%61dmin`, which an application reads as `/admin`.
fn guard_new_escape(out: &mut String, decoded: Option<usize>) {
    let Some(start) = out.len().checked_sub(3) else {
        return;
    };
    let tail = &out.as_bytes()[start..];
    if tail[0] == b'%'
        && tail[1..].iter().all(u8::is_ascii_hexdigit)
        && decoded.is_some_and(|at| at > start)
    {
        out.insert_str(start + 1, "25");
    }
}

fn hex_pair(pair: Option<&[u8]>) -> Option<u8> {
    let pair = std::str::from_utf8(pair?).ok()?;
    pair.bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then(|| u8::from_str_radix(pair, 16).ok())?
}

/// RFC 3986 §5.2.4 on an absolute path; going above the root stays at the root.
fn resolve_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match without_parameters(segment) {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// Normalises an authority: lower case, no user info, no trailing dot, no default port of `scheme`.
/// `None` if it is not a host with an optional port.
#[must_use]
pub fn normalise_authority(authority: &str, scheme: &str) -> Option<String> {
    let bad = |found, b: u8| {
        let mark = matches!(b, b'@' | b'/' | b'\\' | b'?' | b'#');
        found | (b <= b' ') | (b >= 0x7f) | mark
    };
    if authority.is_empty() || authority.bytes().fold(false, bad) {
        return None;
    }
    let (host, port) = split_port(authority);
    let port = match port {
        Some("") | None => None,
        Some(port) => Some(port.parse::<u16>().ok()?),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() {
        return None;
    }
    let mut out = host.to_ascii_lowercase();
    let default = if scheme == "https" { 443 } else { 80 };
    if let Some(port) = port.filter(|port| *port != default) {
        out.push_str(&format!(":{port}"));
    }
    Some(out)
}

/// The authority with its name's trailing dot gone, otherwise as it was written.
#[must_use]
pub fn without_trailing_dot(authority: &str) -> Cow<'_, str> {
    match split_port(authority) {
        (host, None) => Cow::Borrowed(host.strip_suffix('.').unwrap_or(host)),
        (host, Some(port)) => match host.strip_suffix('.') {
            Some(host) => Cow::Owned(format!("{host}:{port}")),
            None => Cow::Borrowed(authority),
        },
    }
}

/// Splits `host:port`; brackets of an IPv6 address belong to the host.
#[must_use]
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port))
            if !port.contains(']') && (!host.contains(':') || host.ends_with(']')) =>
        {
            (host, Some(port))
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_view_of_a_path() {
        for (given, seen) in [
            ("/admin", "/admin"),
            ("/Admin", "/Admin"),
            ("//admin", "//admin"),
            ("/./admin", "/admin"),
            ("/x/../admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/admin%2f", "/admin%2f"),
            ("/admin;x=1", "/admin;x=1"),
            ("/%2e%2e/admin", "/admin"),
            ("/..;/admin", "/admin"),
            ("/x/..;a=b/admin", "/admin"),
            ("/x/%2e%2e;/admin", "/admin"),
            ("/x/.;/y/..;", "/x/"),
            ("/x/.;a", "/x/"),
            ("/x/...;/y;/../z;a", "/x/...;/z;a"),
            ("/x/..%3b/y", "/x/..%3b/y"),
            (r"\admin", "/admin"),
            (r"/a\..\admin", "/admin"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/../..", "/"),
            ("/%c0%af", "/%c0%af"),
            ("/%zz", "/%zz"),
            ("/%", "/%"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a//../b", "/a/b"),
            ("/%%36%31dmin", "/%2561dmin"),
            ("/%%361dmin", "/%2561dmin"),
            ("/%6%31dmin", "/%2561dmin"),
            ("/%%32%65%%32%65/x", "/%252e%252e/x"),
            ("/%2f%61", "/%2fa"),
            ("/%%%36%31", "/%%2561"),
        ] {
            let once = normalise(given, Normalization::Base).unwrap();
            assert_eq!(once, seen, "{given}");
            let twice = normalise(&once, Normalization::Base).unwrap();
            assert_eq!(twice, seen, "{given} twice");
        }
        for bad in [
            "/a b",
            "/a#x",
            "/a\0",
            "/é",
            "/a\r\n",
            "/admin%00",
            "admin",
            "*",
            "",
        ] {
            for how in ALL {
                assert!(normalise(bad, how).is_err(), "{bad:?}");
            }
        }
    }

    const ALL: [Normalization; 4] = [
        Normalization::None,
        Normalization::Base,
        Normalization::MergeSlashes,
        Normalization::DecodeAndMergeSlashes,
    ];

    #[test]
    fn a_path_is_normal_as_far_as_the_mesh_wants_it() {
        for (given, [none, base, merged, decoded]) in [
            ("/admin", ["/admin"; 4]),
            ("//admin", ["//admin", "//admin", "/admin", "/admin"]),
            ("//", ["//", "//", "/", "/"]),
            ("/a///b//", ["/a///b//", "/a///b//", "/a/b/", "/a/b/"]),
            ("/x/../admin", ["/x/../admin", "/admin", "/admin", "/admin"]),
            ("/a//../b", ["/a//../b", "/a/b", "/a/b", "/a/b"]),
            ("/%61", ["/%61", "/a", "/a", "/a"]),
            ("/a\\b", ["/a\\b", "/a/b", "/a/b", "/a/b"]),
            ("/a\\/b", ["/a\\/b", "/a//b", "/a/b", "/a/b"]),
            ("/a%2Fb", ["/a%2Fb", "/a%2Fb", "/a%2Fb", "/a/b"]),
            ("/a%5cb", ["/a%5cb", "/a%5cb", "/a%5cb", "/a/b"]),
            (
                "/a/%2f%5C/b",
                ["/a/%2f%5C/b", "/a/%2f%5C/b", "/a/%2f%5C/b", "/a/b"],
            ),
            (
                "/x%2f..%2fadmin",
                [
                    "/x%2f..%2fadmin",
                    "/x%2f..%2fadmin",
                    "/x%2f..%2fadmin",
                    "/admin",
                ],
            ),
            (
                "/x%2f%2e%2e;a/b",
                ["/x%2f%2e%2e;a/b", "/x%2f..;a/b", "/x%2f..;a/b", "/b"],
            ),
            ("/a%252fb", ["/a%252fb"; 4]),
            ("/a%%32fb", ["/a%%32fb", "/a%252fb", "/a%252fb", "/a%252fb"]),
        ] {
            for (how, seen) in ALL.into_iter().zip([none, base, merged, decoded]) {
                let once = normalise(given, how).unwrap();
                assert_eq!(once, seen, "{given} {how:?}");
                assert_eq!(
                    normalise(&once, how).unwrap(),
                    seen,
                    "{given} {how:?} twice"
                );
            }
        }
        assert!(normalise(r"\admin", Normalization::None).is_err());
    }

    #[test]
    fn what_a_rewrite_made_is_normal_too_and_does_not_climb() {
        for (made, words, seen) in [
            ("/new/x", "/new", Some("/new/x")),
            ("/new//x", "/new/", Some("/new//x")),
            ("/new/./x", "/new/", Some("/new/x")),
            ("/new/x%2fy", "/new", Some("/new/x%2fy")),
            ("/new/%61", "/new/%", Some("/new/a")),
            ("/new/..x", "/new/", Some("/new/..x")),
            ("/new/../x", "/new/", None),
            ("/new/%2e./x", "/new/%", None),
            (r"/new\../x", r"/new\", None),
            ("/new/..;/x", "/new/", None),
            ("/new/x/..", "/new/", None),
            ("/new/%00", "/new/%0", None),
            // What the rule says itself holds.
            ("/a/../b/x", "/a/../b", Some("/b/x")),
            ("/a/%2e%2e/b/x", "/a/%2e%2e/b", Some("/b/x")),
            ("/a/../b/../x", "/a/../b/", None),
            ("/./x?to=/../%61", "/./x?to=", Some("/x?to=/../%61")),
            ("x/../y", "x/", Some("x/../y")),
        ] {
            let normal = rewritten(made.to_owned(), words, Normalization::Base).ok();
            assert_eq!(normal.as_deref(), seen, "{made}");
            let same = rewritten(made.to_owned(), words, Normalization::None);
            assert_eq!(same.as_deref(), Ok(made));
        }
    }

    #[test]
    fn a_plain_path_is_not_copied() {
        for how in ALL {
            assert!(matches!(normalise("/a/b", how), Ok(Cow::Borrowed("/a/b"))));
        }
    }

    #[test]
    fn ports_come_after_the_host() {
        for (given, host, port) in [
            ("a", "a", None),
            ("a:80", "a", Some("80")),
            ("[fd00::1]:80", "[fd00::1]", Some("80")),
            ("[fd00::1]", "[fd00::1]", None),
            ("fd00::1", "fd00::1", None),
        ] {
            assert_eq!(split_port(given), (host, port), "{given}");
        }
    }

    #[test]
    fn one_view_of_a_host() {
        for (given, seen) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("example.com:80", "example.com"),
            ("example.com.:8080", "example.com:8080"),
            ("[::1]:8080", "[::1]:8080"),
            ("[::1]", "[::1]"),
            ("a:", "a"),
        ] {
            assert_eq!(normalise_authority(given, "http").as_deref(), Some(seen));
        }
        for (given, written) in [
            ("Example.COM", "Example.COM"),
            ("A.b.", "A.b"),
            ("A.:80", "A:80"),
            ("a:80", "a:80"),
        ] {
            assert_eq!(without_trailing_dot(given), written);
        }
        for bad in ["", "a b", "u@h", "a/b", "h:99999", "h:x", ".", ":80"] {
            assert_eq!(normalise_authority(bad, "http"), None, "{bad:?}");
        }
    }
}
