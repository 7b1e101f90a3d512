//! What was seen of a request on one side, in a form that can be compared.

use std::collections::BTreeMap;

use http::HeaderMap;

/// Tells the back ends which request of which side they see.
pub(crate) const KEY: &str = "x-oracle";

/// What one side made of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Observed {
    /// Field name and value; fields that are not there did not happen.
    pub(crate) fields: BTreeMap<String, String>,
}

/// What a back end got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) backend: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) version: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// What a caller got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Got {
    /// `None` where no response came.
    pub(crate) status: Option<u16>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    pub(crate) trailers: BTreeMap<String, String>,
    /// `complete`, or how it broke off.
    pub(crate) end: String,
}

impl Got {
    /// Nothing but an end.
    pub(crate) fn nothing(end: impl Into<String>) -> Self {
        Self {
            status: None,
            headers: BTreeMap::new(),
            body: String::new(),
            trailers: BTreeMap::new(),
            end: end.into(),
        }
    }
}

impl Observed {
    /// Puts together what the caller got and what the back ends saw.
    pub(crate) fn of(got: &Got, seen: &[Seen], late: Option<bool>) -> Self {
        let mut fields = BTreeMap::new();
        let status = got.status.map_or("none".to_owned(), |s| s.to_string());
        fields.insert("status".to_owned(), status);
        fields.insert("end".to_owned(), got.end.clone());
        fields.insert("body".to_owned(), got.body.clone());
        fields.insert("tries".to_owned(), seen.len().to_string());
        for (name, value) in &got.headers {
            fields.insert(format!("header:{name}"), value.clone());
        }
        for (name, value) in &got.trailers {
            fields.insert(format!("trailer:{name}"), value.clone());
        }
        if let Some(late) = late {
            let when = if late { "after" } else { "before" };
            fields.insert("deadline".to_owned(), when.to_owned());
        }
        // All tries of one request look alike but for the back end; where they do not, it shows.
        for (at, seen) in seen.iter().enumerate() {
            let mut put = |field: &str, value: &str| {
                fields.insert(format!("try{at}:{field}"), value.to_owned());
            };
            put("backend", &seen.backend);
            put("method", &seen.method);
            put("target", &seen.target);
            put("version", &seen.version);
            put("body", &seen.body);
            for (name, value) in &seen.headers {
                put(&format!("header:{name}"), value);
            }
        }
        Self { fields }
    }

    /// Many requests as one: which fields had which value never, at times, always; or only whether
    /// the values were the same.
    pub(crate) fn folded(all: &[Self], same: bool) -> Self {
        if same {
            let alike = ["status", "body"].map(|field| {
                let mut values = all.iter().map(|one| one.fields.get(field));
                let first = values.next();
                let alike = values.all(|value| Some(value) == first);
                (format!("{field} is the same"), alike.to_string())
            });
            return Self {
                fields: alike.into(),
            };
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for one in all {
            for field in ["status", "body"] {
                let value = one.fields.get(field).map_or("", String::as_str);
                *counts.entry(format!("{field}={value}")).or_default() += 1;
            }
        }
        let fields = counts.into_iter().map(|(what, count)| {
            let often = if count == all.len() {
                "always"
            } else {
                "at times"
            };
            (what, often.to_owned())
        });
        Self {
            fields: fields.collect(),
        }
    }

    /// Fields that differ: name, ours, Envoy's.
    pub(crate) fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut names: Vec<&String> = self.fields.keys().chain(other.fields.keys()).collect();
        names.sort();
        names.dedup();
        names
            .into_iter()
            .filter_map(|name| {
                let (ours, theirs) = (self.fields.get(name), other.fields.get(name));
                (ours != theirs).then(|| Difference {
                    field: name.clone(),
                    ours: ours.cloned(),
                    envoys: theirs.cloned(),
                })
            })
            .collect()
    }
}

/// One field on which the two sides do not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) field: String,
    pub(crate) ours: Option<String>,
    pub(crate) envoys: Option<String>,
}

/// Headers by name, several lines joined in order; what differs from run to run is made alike.
pub(crate) fn normalised(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let name = name.as_str();
        // When it was sent is nobody's decision; the key is the test's own.
        if matches!(name, "date" | KEY) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        let value = match name {
            "server" if matches!(&*value, "isobar" | "istio-envoy") => "<proxy>",
            "x-envoy-upstream-service-time" => "<time>",
            "x-request-id" if is_uuid(&value) => "<uuid>",
            _ => &*value,
        };
        let entry = all.entry(name.to_owned());
        entry
            .and_modify(|have| {
                have.push_str(" | ");
                have.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    all
}

/// Eight, four, four, four and twelve hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|p| p.len()).eq([8, 4, 4, 4, 12])
        && parts
            .iter()
            .all(|part| part.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_with_both_sides() {
        let got = |status| Got {
            status: Some(status),
            ..Got::nothing("complete")
        };
        let one = Observed::of(&got(200), &[], Some(true));
        let other = Observed::of(&got(503), &[], Some(true));
        let found = one.differences(&other);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].field, "status");
        assert_eq!(found[0].envoys.as_deref(), Some("503"));
        let alike = Observed::folded(&[one.clone(), other.clone()], true);
        assert_eq!(alike.fields["status is the same"], "false");
        assert_eq!(alike.fields["body is the same"], "true");
        let folded = Observed::folded(&[one, other], false);
        assert_eq!(folded.fields["status=503"], "at times");
        assert_eq!(folded.fields["body="], "always");
    }
}
