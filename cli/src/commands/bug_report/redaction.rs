//! What may be secret is left out of a report.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::{Map, Value};

/// What stands in its place.
pub(super) const LEFT_OUT: &str = "(left out)";

/// Ends of names whose values are secret.
const SECRET_NAMES: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "authorization",
    "cookie",
    "credentials",
];

/// The same, but names that only end so by chance are left alone, and so is what has fields of its own.
const PERHAPS_SECRET: [&str; 4] = ["key", "pass", "pwd", "auth"];
/// Ends of names that are none of those.
const OPEN_NAMES: [&str; 5] = [
    "bypass",
    "publickey",
    "public-key",
    "public_key",
    "topologykey",
];

static KEYS: LazyLock<Regex> = LazyLock::new(|| {
    let text = r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)";
    Regex::new(text).expect("a valid expression")
});
static TOKENS: LazyLock<Regex> = LazyLock::new(|| {
    let text = r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*";
    Regex::new(text).expect("a valid expression")
});
static SCHEMES: LazyLock<Regex> = LazyLock::new(|| {
    let text = r#"(?i)\b(authorization["']?\s*[:=]\s*["']?basic|bearer) +[A-Za-z0-9._~+/=-]{6,}"#;
    Regex::new(text).expect("a valid expression")
});
static PAIRS: LazyLock<Regex> = LazyLock::new(|| {
    let text = format!(
        r#"(?i)([?&]?)\b([a-z0-9_.-]*(?:{}))=("[^"]*"|'[^']*'|[^\s&"]+)"#,
        ends()
    );
    Regex::new(&text).expect("a valid expression")
});
/// A flag whose value is the next word.
static FLAGS: LazyLock<Regex> = LazyLock::new(|| {
    let text = format!(
        r#"(?i)((?:^|[\s"'])--?)([a-z0-9_-]*(?:{}))(\s+)(\(left out\)|"[^"]*"|'[^']*'|[^\s-]\S*)"#,
        ends()
    );
    Regex::new(&text).expect("a valid expression")
});
/// A header as it is sent.
static HEADERS: LazyLock<Regex> = LazyLock::new(|| {
    let text = format!(r#"(?i)\b(x-[a-z0-9_-]*(?:{})): *([^\s"]+)"#, ends());
    Regex::new(&text).expect("a valid expression")
});
/// A field of JSON.
static FIELDS: LazyLock<Regex> = LazyLock::new(|| {
    let text = format!(
        r#"(?i)"([a-z0-9_.-]*(?:{}))"(\s*:\s*)"((?:[^"\\]|\\.)*)""#,
        ends()
    );
    Regex::new(&text).expect("a valid expression")
});
/// The same within a text that is quoted itself.
static QUOTED_FIELDS: LazyLock<Regex> = LazyLock::new(|| {
    let text = format!(
        r#"(?i)(\\+")([a-z0-9_.-]*(?:{}))(\\+"\s*:\s*\\+")(.*?)(\\+")"#,
        ends()
    );
    Regex::new(&text).expect("a valid expression")
});

fn ends() -> String {
    let all: Vec<&str> = SECRET_NAMES.into_iter().chain(PERHAPS_SECRET).collect();
    all.join("|")
}

/// What stands before the host of an address. A password may have an `@` of its own.
static USERS: LazyLock<Regex> = LazyLock::new(|| {
    let text = r#"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#"'<>]+@"#;
    Regex::new(text).expect("a valid expression")
});

/// Text without keys, tokens, and values of secret names.
pub(super) fn of_text(text: &str) -> String {
    let text = KEYS.replace_all(text, LEFT_OUT);
    let text = TOKENS.replace_all(&text, LEFT_OUT);
    let text = SCHEMES.replace_all(&text, |found: &Captures<'_>| {
        format!("{} {LEFT_OUT}", &found[1])
    });
    let text = PAIRS.replace_all(&text, |found: &Captures<'_>| {
        let (before, name) = (&found[1], &found[2]);
        // A key alone is one in a query only.
        match is_secret(name) || !before.is_empty() && name.eq_ignore_ascii_case("key") {
            true => format!("{before}{name}={LEFT_OUT}"),
            false => found[0].to_owned(),
        }
    });
    let text = FLAGS.replace_all(&text, |found: &Captures<'_>| match is_secret(&found[2]) {
        true => format!("{}{}{}{LEFT_OUT}", &found[1], &found[2], &found[3]),
        false => found[0].to_owned(),
    });
    let text = HEADERS.replace_all(&text, |found: &Captures<'_>| match is_secret(&found[1]) {
        true => format!("{}: {LEFT_OUT}", &found[1]),
        false => found[0].to_owned(),
    });
    let text = FIELDS.replace_all(&text, |found: &Captures<'_>| match is_secret(&found[1]) {
        true => format!("\"{}\"{}\"{LEFT_OUT}\"", &found[1], &found[2]),
        false => found[0].to_owned(),
    });
    let text =
        QUOTED_FIELDS.replace_all(&text, |found: &Captures<'_>| match is_secret(&found[2]) {
            true => format!(
                "{}{}{}{LEFT_OUT}{}",
                &found[1], &found[2], &found[3], &found[5]
            ),
            false => found[0].to_owned(),
        });
    let text = USERS.replace_all(&text, |found: &Captures<'_>| {
        format!("{}{LEFT_OUT}@", &found[1])
    });
    text.into_owned()
}

/// Leaves secret values out of an object or a page.
pub(super) fn of_value(value: &mut Value) {
    if value["kind"] == "Secret" {
        for field in ["data", "stringData"] {
            hide(&mut value[field]);
        }
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(Value::Object(notes)) = metadata.get_mut("annotations") {
            // A whole object as text, in which values have no names any more.
            notes.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    walk(value);
}

fn walk(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for field in fields_of_secret(map) {
                if let Some(below) = map.get_mut(*field) {
                    hide(below);
                }
            }
            for (name, below) in map {
                match name.as_str() {
                    "env" => environment(below),
                    "headers" | "withoutHeaders" if below.is_array() => conditions(below),
                    name if is_secret(name) && !(below.is_object() && is_perhaps(name)) => {
                        hide(below);
                    }
                    _ => walk(below),
                }
            }
        }
        Value::Array(list) => words(list),
        Value::String(text) => *text = written(text).unwrap_or_else(|| of_text(text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// An object or a list that is written as text, as annotations have them.
fn written(text: &str) -> Option<String> {
    if !text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let mut value: Value = serde_json::from_str(text).ok()?;
    of_value(&mut value);
    Some(value.to_string())
}

/// Fields with what a secret is compared with or set to, where another field says that it is one: a
/// condition of a policy (`key: request.headers[x-token]`), a header of a route (`name: x-token`).
fn fields_of_secret(map: &Map<String, Value>) -> &'static [&'static str] {
    let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default();
    let attribute = text("key");
    if attribute.contains('[') && is_secret(attribute.trim_end_matches(']')) {
        &["values", "notValues"]
    } else if is_secret(text("name")) {
        &["value"]
    } else {
        &[]
    }
}

/// Headers and what is asked of them, in a waypoint's words: `NAME = VALUE`, `NAME prefix VALUE`.
fn conditions(list: &mut Value) {
    for one in list.as_array_mut().into_iter().flatten() {
        match one.as_str().and_then(|text| text.split_once(' ')) {
            Some((name, _)) if is_secret(name) => *one = format!("{name} {LEFT_OUT}").into(),
            _ => walk(one),
        }
    }
}

/// Names stay, and where values come from; the values go.
fn environment(value: &mut Value) {
    for one in value.as_array_mut().into_iter().flatten() {
        if let Some(written) = one.get_mut("value") {
            hide(written);
        }
    }
}

/// A list may be a command line, in which a flag's value is the next word.
fn words(list: &mut [Value]) {
    let mut is_value = false;
    for one in list {
        let is_next = one.as_str().is_some_and(is_secret_flag);
        match is_value && one.is_string() {
            true => hide(one),
            false => walk(one),
        }
        is_value = is_next;
    }
}

fn is_secret_flag(word: &str) -> bool {
    word.strip_prefix('-')
        .is_some_and(|name| !name.contains(char::is_whitespace) && is_secret(name))
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let ends = |all: &[&str]| all.iter().any(|end| name.ends_with(end));
    ends(&SECRET_NAMES) || name != "key" && ends(&PERHAPS_SECRET) && !ends(&OPEN_NAMES)
}

/// True for a name as programs give them to parts of an object (`externalAuth`), not as people name
/// headers and the like.
fn is_perhaps(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    !name.contains(['-', '_', '.']) && !SECRET_NAMES.iter().any(|end| lower.ends_with(end))
}

/// Every text in it.
fn hide(value: &mut Value) {
    match value {
        Value::String(text) => LEFT_OUT.clone_into(text),
        Value::Array(list) => list.iter_mut().for_each(hide),
        Value::Object(map) => map.values_mut().for_each(hide),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_loses_keys_tokens_and_values() {
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl";
        for (text, left) in [
            (format!("got {token} now"), "got (left out) now"),
            (
                "a -----BEGIN EC PRIVATE KEY-----\nMIG\n-----END EC PRIVATE KEY----- b".into(),
                "a (left out) b",
            ),
            (
                r#"{"key":"-----BEGIN PRIVATE KEY-----\nMIG"#.into(),
                r#"{"key":"(left out)"#,
            ),
            (
                "authorization: Bearer abcdef123456".into(),
                "authorization: Bearer (left out)",
            ),
            (
                "GET /?access_token=abc&x=1".into(),
                "GET /?access_token=(left out)&x=1",
            ),
            (
                "--db-password=\"a b\" --x=1".into(),
                "--db-password=(left out) --x=1",
            ),
            (
                "dial postgres://cart:p@ss@db:5432/x?y=a@b failed".into(),
                "dial postgres://(left out)@db:5432/x?y=a@b failed",
            ),
            (
                "see https://example.org/@team".into(),
                "see https://example.org/@team",
            ),
            (
                "run --db-password hunter2 --token --x".into(),
                "run --db-password (left out) --token --x",
            ),
            ("a basic question".into(), "a basic question"),
            (
                "the secret istio-ca-secret".into(),
                "the secret istio-ca-secret",
            ),
            (
                "-----BEGIN CERTIFICATE-----\nMIIB".into(),
                "-----BEGIN CERTIFICATE-----\nMIIB",
            ),
        ] {
            assert_eq!(of_text(&text), left);
        }
    }

    #[test]
    fn text_loses_values_of_names_that_may_be_secret() {
        for (text, left) in [
            (
                "env AWS_SECRET_ACCESS_KEY=s3/cr,et; DB_PASS='a b' run --db-pass=x --access-key AKIA",
                "env AWS_SECRET_ACCESS_KEY=(left out) DB_PASS=(left out) run --db-pass=(left out) --access-key (left out)",
            ),
            (
                "GET /maps?key=AIza&x=1 of key=shop/cart bypass=true",
                "GET /maps?key=(left out)&x=1 of key=shop/cart bypass=true",
            ),
            (
                "> X-Auth-Key: s3cret\n> x-access-key:s3cret",
                "> X-Auth-Key: (left out)\n> x-access-key: (left out)",
            ),
            (
                r#"got {"user":"u","password": "a\"b","key":"k"}"#,
                r#"got {"user":"u","password": "(left out)","key":"k"}"#,
            ),
            (
                r#"body="{\"db_pwd\":\"a b\",\"x\":\"y\"}""#,
                r#"body="{\"db_pwd\":\"(left out)\",\"x\":\"y\"}""#,
            ),
        ] {
            assert_eq!(of_text(text), left);
        }
    }

    #[test]
    fn objects_lose_what_secrets_hold() {
        let mut secret = json!({"kind": "Secret", "metadata": {"name": "s", "managedFields": [1],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{x}", "a": "b"}},
            "data": {"a": "aGVsbG8="}, "stringData": {"b": "hello"}});
        of_value(&mut secret);
        assert_eq!(secret["data"]["a"], LEFT_OUT);
        assert_eq!(secret["stringData"]["b"], LEFT_OUT);
        assert_eq!(
            secret["metadata"],
            json!({"name": "s", "annotations": {"a": "b"}})
        );
        let mut pod = json!({"kind": "Pod", "spec": {"serviceAccountName": "cart", "containers": [
            {"env": [{"name": "DB", "value": "postgres://u:p@db"},
                     {"name": "K", "valueFrom": {"secretKeyRef": {"name": "db", "key": "k"}}}],
             "command": ["serve", "--password", "hunter2", "--port", "8080"],
             "args": ["--api-key=hunter2", "-token", "--hunter2", "redis://u:hunter2@db"]}]}});
        of_value(&mut pod);
        let text = pod.to_string();
        assert!(
            !text.contains("postgres") && !text.contains("hunter2"),
            "{text}"
        );
        assert!(
            text.contains("secretKeyRef") && text.contains("cart") && text.contains("8080"),
            "{text}"
        );
        let mut route = json!({"kind": "VirtualService", "spec": {"http": [{"headers": {"request":
            {"set": {"Authorization": "s3cret", "x-a": "b"}}}, "match": [{"uri": {"prefix": "/a"}}]}]}});
        of_value(&mut route);
        let text = route.to_string();
        assert!(
            !text.contains("s3cret") && text.contains("/a") && text.contains("x-a"),
            "{text}"
        );
    }

    #[test]
    fn policies_and_routes_lose_what_secret_headers_are_compared_with() {
        let mut policy = json!({"kind": "AuthorizationPolicy", "spec": {"rules": [{"when": [
            {"key": "request.headers[X-Token]", "values": ["s3cret"]},
            {"key": "request.headers[authorization]", "notValues": ["s3cret*"]},
            {"key": "request.auth.claims[api-key]", "values": ["s3cret"]},
            {"key": "request.headers[end-user]", "values": ["jason"]},
            {"key": "source.namespace", "values": ["token"]}]}]}});
        of_value(&mut policy);
        let text = policy.to_string();
        assert!(!text.contains("s3cret"), "{text}");
        assert!(
            text.contains("X-Token") && text.contains("jason") && text.contains(r#"["token"]"#),
            "{text}"
        );
        let mut route = json!({"kind": "VirtualService", "spec": {"http": [{"match": [{"headers": {
            "x-secret-key": {"exact": "s3cret"}, "end-user": {"exact": "jason"}}}],
            "headers": {"request": {"set": {"X-Auth-Key": "s3cret"}}}}]}});
        of_value(&mut route);
        let text = route.to_string();
        assert!(!text.contains("s3cret") && text.contains("jason"), "{text}");
        let mut route = json!({"kind": "HTTPRoute", "spec": {"rules": [{
            "matches": [{"headers": [{"name": "x-token", "value": "s3cret"},
                {"name": "end-user", "value": "jason"}]}],
            "filters": [{"requestHeaderModifier": {"set": [
                {"name": "Authorization", "value": "s3cret"}]}}]}]}});
        of_value(&mut route);
        let text = route.to_string();
        assert!(!text.contains("s3cret") && text.contains("jason"), "{text}");
        // A waypoint's dump.
        let mut dump = json!({"routes": [{"http": [{"matches": [{
            "headers": ["x-token = s3cret", "end-user = jason", "x-secret-key = s3cret"],
            "withoutHeaders": ["cookie prefix s3cret"]}]}]}]});
        of_value(&mut dump);
        let all = &dump["routes"][0]["http"][0]["matches"][0];
        assert_eq!(
            all["headers"],
            json!([
                "x-token (left out)",
                "end-user = jason",
                "x-secret-key (left out)"
            ])
        );
        assert_eq!(all["withoutHeaders"], json!(["cookie (left out)"]));
    }

    #[test]
    fn what_is_written_as_text_is_read() {
        let inner = r#"{"auth": {"user": "jason", "password": "s3cret", "accessKey": "s3cret"}}"#;
        let mut pod = json!({"kind": "Pod", "metadata": {"annotations": {"config": inner}},
            "spec": {"externalAuth": {"service": "authoriser"}, "affinity": {"topologyKey": "zone"}}});
        of_value(&mut pod);
        let text = pod.to_string();
        assert!(!text.contains("s3cret") && text.contains("jason"), "{text}");
        assert!(
            text.contains("authoriser") && text.contains("zone"),
            "{text}"
        );
    }
}
