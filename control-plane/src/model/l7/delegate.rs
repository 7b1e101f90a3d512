//! Rules that hand over to another VirtualService, whose rules continue them.

use std::collections::{BTreeMap, HashMap};

use isobar_proto::isobar::v1 as wire;
use prost::Message as _;
use wire::string_match::MatchType;

/// What the rules of all delegates may come to in the VirtualServices of one namespace, in bytes as they
/// are sent: a thousand rules that hand over to a thousand are a million.
const ROOM: usize = 8 << 20;
/// What a rule or a match takes besides.
const EACH: usize = 64;

/// What delegates have come to.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// By whom rules are for and the namespace of those that hand over.
    used: HashMap<(String, String), usize>,
}

impl Room {
    /// Takes so many bytes; false if there are not so many, and then there are none any more.
    pub(super) fn take(&mut self, whom: &str, namespace: &str, bytes: usize) -> bool {
        let used = self.used.entry((whom.to_owned(), namespace.to_owned()));
        let used = used.or_default();
        *used = used.saturating_add(bytes);
        let fits = *used <= ROOM;
        if !fits {
            *used = usize::MAX;
        }
        fits
    }
}

/// The least that so many rules with so many matches take.
pub(super) const fn least(rules: usize, matches: usize) -> usize {
    (rules + matches) * EACH
}

/// At least what [`merged`] comes to, in bytes.
pub(super) fn cost(root: &wire::HttpRoute, delegate: &[wire::HttpRoute]) -> usize {
    let sizes = |all: &[wire::HttpMatch]| all.iter().map(|one| one.encoded_len()).sum::<usize>();
    let (of_root, root_len) = (sizes(&root.matches), root.encoded_len());
    let mut all: usize = 0;
    for own in delegate {
        let pairs = root
            .matches
            .len()
            .max(1)
            .saturating_mul(own.matches.len().max(1));
        let ours = of_root.saturating_mul(own.matches.len().max(1));
        let theirs = sizes(&own.matches).saturating_mul(root.matches.len().max(1));
        all = [
            own.encoded_len(),
            root_len,
            ours,
            theirs,
            pairs.saturating_mul(EACH),
        ]
        .into_iter()
        .fold(all, usize::saturating_add);
    }
    all
}

/// The rules of a delegate as part of the rule that hands over to it. A rule that asks for something
/// the root does not take can never hold; it is left out.
pub(super) fn merged(
    root: &wire::HttpRoute,
    delegate: Vec<wire::HttpRoute>,
) -> Vec<wire::HttpRoute> {
    delegate
        .into_iter()
        .filter_map(|own| merge(root, own))
        .collect()
}

/// What the delegate's rule does not say is as the root says.
fn merge(root: &wire::HttpRoute, own: wire::HttpRoute) -> Option<wire::HttpRoute> {
    Some(wire::HttpRoute {
        name: joined(&root.name, &own.name),
        matches: matches(&root.matches, own.matches)?,
        action: own.action,
        rewrite: own.rewrite.or_else(|| root.rewrite.clone()),
        headers: own.headers.or_else(|| root.headers.clone()),
        timeout: own.timeout.or(root.timeout),
        retries: own.retries.or_else(|| root.retries.clone()),
        fault: own.fault.or(root.fault),
        mirrors: if own.mirrors.is_empty() {
            root.mirrors.clone()
        } else {
            own.mirrors
        },
        cors: own.cors.or_else(|| root.cors.clone()),
        session: own.session.or_else(|| root.session.clone()),
        // VirtualServices have none of these.
        external_auth: own.external_auth,
        rate_limits: own.rate_limits,
    })
}

fn joined(root: &str, own: &str) -> String {
    match (root, own) {
        ("", name) | (name, "") => name.to_owned(),
        (root, own) => format!("{root}-{own}"),
    }
}

/// Each block of the one with each of the other, as far as they go together.
fn matches(root: &[wire::HttpMatch], own: Vec<wire::HttpMatch>) -> Option<Vec<wire::HttpMatch>> {
    if root.is_empty() {
        return Some(own);
    }
    if own.is_empty() {
        return Some(root.to_vec());
    }
    let pairs = own
        .iter()
        .flat_map(|own| root.iter().map(move |r| (r, own)));
    let all: Vec<_> = pairs.filter_map(|(root, own)| both(root, own)).collect();
    (!all.is_empty()).then_some(all)
}

fn both(root: &wire::HttpMatch, own: &wire::HttpMatch) -> Option<wire::HttpMatch> {
    let cases_differ = root.ignore_uri_case != own.ignore_uri_case;
    if cases_differ && root.uri.is_some() && own.uri.is_some() {
        return None;
    }
    let folds = own.ignore_uri_case;
    Some(wire::HttpMatch {
        name: joined(&root.name, &own.name),
        uri: narrower(root.uri.as_ref(), own.uri.as_ref(), folds)?,
        scheme: narrower(root.scheme.as_ref(), own.scheme.as_ref(), false)?,
        method: narrower(root.method.as_ref(), own.method.as_ref(), false)?,
        authority: narrower(root.authority.as_ref(), own.authority.as_ref(), false)?,
        headers: all_of(&root.headers, &own.headers)?,
        without_headers: either(&root.without_headers, &own.without_headers)?,
        query_params: all_of(&root.query_params, &own.query_params)?,
        ignore_uri_case: root.ignore_uri_case || own.ignore_uri_case,
        port: said(root.port, own.port, &0)?,
        source_labels: either(&root.source_labels, &own.source_labels)?,
        source_namespace: said(
            root.source_namespace.clone(),
            own.source_namespace.clone(),
            &String::new(),
        )?,
        stat_prefix: if own.stat_prefix.is_empty() {
            root.stat_prefix.clone()
        } else {
            own.stat_prefix.clone()
        },
    })
}

/// What either says; `None` if they say different things.
fn said<T: PartialEq>(root: T, own: T, nothing: &T) -> Option<T> {
    if own == *nothing {
        Some(root)
    } else {
        (root == *nothing || root == own).then_some(own)
    }
}

/// All entries of both; `None` if they say different things of one key.
fn either<T: Clone + PartialEq>(
    root: &BTreeMap<String, T>,
    own: &BTreeMap<String, T>,
) -> Option<BTreeMap<String, T>> {
    let same = |(key, value): (&String, &T)| root.get(key).is_none_or(|other| other == value);
    let mut all = root.clone();
    all.extend(own.clone());
    own.iter().all(same).then_some(all)
}

fn all_of(
    root: &BTreeMap<String, wire::StringMatch>,
    own: &BTreeMap<String, wire::StringMatch>,
) -> Option<BTreeMap<String, wire::StringMatch>> {
    let mut all = root.clone();
    for (key, value) in own {
        let narrow = narrower(root.get(key), Some(value), false)?;
        all.extend(narrow.map(|narrow| (key.clone(), narrow)));
    }
    Some(all)
}

/// The delegate's match where it stays within the root's. `None` if it does not, or if nobody can
/// tell: of two different expressions.
#[expect(
    clippy::option_option,
    reason = "no match at all is one of the answers"
)]
fn narrower(
    root: Option<&wire::StringMatch>,
    own: Option<&wire::StringMatch>,
    ignore_case: bool,
) -> Option<Option<wire::StringMatch>> {
    let (Some(root), Some(own)) = (root, own) else {
        return Some(own.or(root).cloned());
    };
    let starts = |text: &str, start: &str| {
        if ignore_case {
            let (text, start) = (text.to_ascii_lowercase(), start.to_ascii_lowercase());
            text.starts_with(&start)
        } else {
            text.starts_with(start)
        }
    };
    let within = match (&root.match_type, &own.match_type) {
        (None | Some(MatchType::Present(_)), _) => own,
        (_, None | Some(MatchType::Present(_))) => root,
        (Some(one), Some(other)) if one == other => own,
        (
            Some(MatchType::Prefix(start)),
            Some(MatchType::Exact(text) | MatchType::Prefix(text)),
        ) if starts(text, start) => own,
        _ => return None,
    };
    Some(Some(within.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kind: MatchType) -> Option<wire::StringMatch> {
        Some(wire::StringMatch {
            match_type: Some(kind),
        })
    }

    fn uri(kind: MatchType) -> wire::HttpMatch {
        wire::HttpMatch {
            uri: text(kind),
            ..Default::default()
        }
    }

    fn exact(path: &str) -> wire::HttpMatch {
        uri(MatchType::Exact(path.into()))
    }

    fn prefix(path: &str) -> wire::HttpMatch {
        uri(MatchType::Prefix(path.into()))
    }

    #[test]
    fn a_delegate_stays_within_its_root() {
        let regex = |r: &str| uri(MatchType::Regex(r.into()));
        for (root, own, merged) in [
            (prefix("/a"), exact("/a/b"), Some(exact("/a/b"))),
            (prefix("/a"), prefix("/a/b"), Some(prefix("/a/b"))),
            (prefix("/a/b"), prefix("/a"), None),
            (prefix("/a"), exact("/b"), None),
            (exact("/a"), prefix("/"), None),
            (exact("/a"), exact("/a"), Some(exact("/a"))),
            (prefix("/a"), regex("/a.*"), None),
            (regex("x"), regex("x"), Some(regex("x"))),
            (prefix("/a"), wire::HttpMatch::default(), Some(prefix("/a"))),
            (wire::HttpMatch::default(), exact("/x"), Some(exact("/x"))),
        ] {
            assert_eq!(both(&root, &own), merged, "{root:?} {own:?}");
        }
    }

    #[test]
    fn ports_labels_and_headers_of_both_hold() {
        let header = |name: &str, value: &str| {
            let exact = MatchType::Exact(value.into());
            [(name.to_owned(), text(exact).unwrap())]
        };
        let root = wire::HttpMatch {
            headers: header("a", "1").into(),
            source_labels: [("app".to_owned(), "x".to_owned())].into(),
            port: 80,
            ..Default::default()
        };
        let own = wire::HttpMatch {
            headers: header("b", "2").into(),
            source_namespace: "web".into(),
            ..Default::default()
        };
        let all = both(&root, &own).unwrap();
        assert_eq!((all.headers.len(), all.port), (2, 80));
        assert_eq!(all.source_namespace, "web");
        assert_eq!(all.source_labels["app"], "x");
        for other in [
            wire::HttpMatch {
                port: 81,
                ..Default::default()
            },
            wire::HttpMatch {
                headers: header("a", "2").into(),
                ..Default::default()
            },
            wire::HttpMatch {
                source_labels: [("app".to_owned(), "y".to_owned())].into(),
                ..Default::default()
            },
        ] {
            assert_eq!(both(&root, &other), None);
        }
    }

    #[test]
    fn what_the_delegate_does_not_say_is_the_roots() {
        let second = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let root = wire::HttpRoute {
            name: "root".into(),
            matches: vec![prefix("/a"), prefix("/b")],
            timeout: second(1),
            ..Default::default()
        };
        let own = |name: &str, matches: Vec<wire::HttpMatch>, timeout| wire::HttpRoute {
            name: name.into(),
            matches,
            timeout,
            ..Default::default()
        };
        let all = merged(
            &root,
            vec![
                own("one", vec![exact("/a/1"), exact("/c")], None),
                own("never", vec![exact("/c")], None),
                own("", vec![], second(2)),
            ],
        );
        let names: Vec<_> = all.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["root-one", "root"]);
        assert_eq!(all[0].matches, [exact("/a/1")]);
        assert_eq!(all[1].matches, root.matches);
        assert_eq!((all[0].timeout, all[1].timeout), (second(1), second(2)));
    }
}
