//! The one normalised view of a request's path and host.
//!
//! Policy, routing, rewriting, log and what is forwarded all use these values, so that a policy can
//! never see another path than the application does. The mode is Istio's BASE: dot segments are
//! resolved, also those with parameters (`..;x`), unreserved characters decoded, backslashes are slashes;
//! doubled slashes stay.

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

/// Normalises a path without its query.
///
/// # Errors
/// When the path holds what no honest client sends; the request is then refused with 400.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, PathError> {
    // Without a way out in between, several octets are looked at together.
    let bad = |found, b: u8| found | (b <= b' ') | (b >= 0x7f) | (b == b'#');
    if path.bytes().fold(false, bad) {
        return Err(PathError::Character);
    }
    if !path.starts_with(['/', '\\']) {
        return Err(PathError::NotAbsolute);
    }
    if is_normal(path) {
        return Ok(Cow::Borrowed(path));
    }
    Ok(Cow::Owned(resolve_dots(&decode_unreserved(path)?)))
}

/// Normalises what a rewrite made of a path that was normal: `/pub../x` with `/public/` for `/pub` must
/// not leave as `/public/../x`, which an application reads as `/x`. `words` are what the rule itself
/// wrote; a query in them stays as it is.
///
/// # Errors
/// When the path climbs where the rule does not, or holds an encoded NUL; the request is then refused
/// with 400.
pub fn rewritten(made: String, words: &str) -> Result<String, PathError> {
    let (path, query) = made.split_at(made.find('?').unwrap_or(made.len()));
    // What is no path is for whoever sends it to refuse.
    if is_normal(path) || !path.starts_with(['/', '\\']) {
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
            let once = normalise(given).unwrap();
            assert_eq!(once, seen, "{given}");
            assert_eq!(normalise(&once).unwrap(), seen, "{given} twice");
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
            assert!(normalise(bad).is_err(), "{bad:?}");
        }
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
            let normal = rewritten(made.to_owned(), words).ok();
            assert_eq!(normal.as_deref(), seen, "{made}");
        }
    }

    #[test]
    fn a_plain_path_is_not_copied() {
        assert!(matches!(normalise("/a/b"), Ok(Cow::Borrowed("/a/b"))));
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
