use std::borrow::Cow;
use std::collections::HashMap;

use foldhash::fast::RandomState;
use http::HeaderName;

use crate::call::{Caller, HttpCall};
use crate::http_match::header_value;
use crate::text::TextMatch;
use crate::virtual_service::{HeaderKey, HttpMatch, HttpRoute};

/// Up to so many match blocks asking one after the other is as quick as looking up.
const FEW: usize = 4;

/// Where a rule, and the match block of it that held, stand in their object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) route: usize,
    /// `None` for a rule without match blocks, which takes everything.
    pub(crate) block: Option<usize>,
}

/// Places in the order of the object.
type Places = Vec<Place>;
type ByText = HashMap<String, Places, RandomState>;

/// Finds the first rule that takes a request without asking every rule of a large object: each match
/// block waits under the one value it asks for that tells most requests apart, and only the blocks
/// whose value the request has are asked, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Finder {
    /// `None` for a small object, whose rules are asked one after the other.
    index: Option<Index>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Index {
    /// By the whole path.
    exact: ByText,
    /// By a header's name, then by its value.
    headers: HashMap<HeaderName, ByText, RandomState>,
    /// By the start of the path.
    prefix: ByText,
    /// Lengths that occur in `prefix`, ascending.
    lengths: Vec<usize>,
    /// Blocks that ask for none of those.
    rest: Places,
}

impl Finder {
    pub(crate) fn new(routes: &[HttpRoute]) -> Self {
        let blocks: usize = routes.iter().map(|route| route.matches.len().max(1)).sum();
        Self {
            index: (blocks > FEW).then(|| Index::new(routes)),
        }
    }

    /// The first rule that takes the request, and its first block that holds.
    pub(crate) fn first(
        &self,
        routes: &[HttpRoute],
        call: &HttpCall<'_>,
        caller: &Caller,
    ) -> Option<Place> {
        let holds = |place: &Place| {
            let block = place.block.map(|at| &routes[place.route].matches[at]);
            block.is_none_or(|block| block.holds(call, caller))
        };
        let Some(index) = &self.index else {
            return all(routes).find(holds);
        };
        let mut lists: Vec<&[Place]> = index.lists(call).collect();
        loop {
            let next = lists.iter_mut().min_by_key(|list| list[0])?;
            if holds(&next[0]) {
                return Some(next[0]);
            }
            *next = &next[1..];
            lists.retain(|list| !list.is_empty());
        }
    }
}

fn all(routes: &[HttpRoute]) -> impl Iterator<Item = Place> {
    routes.iter().enumerate().flat_map(|(at, route)| {
        let open = route.matches.is_empty().then_some(None);
        let blocks = (0..route.matches.len()).map(Some);
        open.into_iter()
            .chain(blocks)
            .map(move |block| Place { route: at, block })
    })
}

impl Index {
    fn new(routes: &[HttpRoute]) -> Self {
        let mut index = Self::default();
        for place in all(routes) {
            let block = place.block.map(|at| &routes[place.route].matches[at]);
            index.slot(block).push(place);
        }
        index.lengths = index.prefix.keys().map(String::len).collect();
        index.lengths.sort_unstable();
        index.lengths.dedup();
        index
    }

    /// Where a block waits: a whole path tells most requests apart, then a header's value, then the
    /// start of a path.
    fn slot(&mut self, block: Option<&HttpMatch>) -> &mut Places {
        let Some(block) = block else {
            return &mut self.rest;
        };
        let uri = block.uri.as_ref().filter(|_| !block.ignore_uri_case);
        if let Some(TextMatch::Exact(path)) = uri {
            return self.exact.entry(path.clone()).or_default();
        }
        let header = block.headers.iter().find_map(|wanted| match wanted {
            (HeaderKey::Name(name), TextMatch::Exact(value)) => Some((name, value)),
            _ => None,
        });
        if let Some((name, value)) = header {
            let values = self.headers.entry(name.clone()).or_default();
            return values.entry(value.clone()).or_default();
        }
        match uri {
            Some(TextMatch::Prefix(start) | TextMatch::PathPrefix(start)) => {
                self.prefix.entry(start.clone()).or_default()
            }
            _ => &mut self.rest,
        }
    }

    /// The lists that may hold a block for this request; none is empty.
    fn lists<'a>(&'a self, call: &'a HttpCall<'_>) -> impl Iterator<Item = &'a [Place]> {
        let exact = self.exact.get(call.path);
        let headers = self.headers.iter().filter_map(|(name, values)| {
            let value = header_value(name, call)?;
            let text: Cow<'_, str> = match value {
                Cow::Borrowed(bytes) => Cow::Borrowed(std::str::from_utf8(bytes).ok()?),
                Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).ok()?),
            };
            values.get(&*text)
        });
        let prefixes = self.lengths.iter().filter_map(|length| {
            let start = call.path.get(..*length)?;
            self.prefix.get(start)
        });
        let rest = Some(&self.rest).filter(|rest| !rest.is_empty());
        let found = exact.into_iter().chain(headers).chain(prefixes).chain(rest);
        found.map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use crate::VirtualService;
    use crate::http_match::tests::{call, caller, object, rule, uri};
    use http::{HeaderMap, HeaderValue};
    use isobar_proto::isobar::v1 as proto;
    use proto::string_match::MatchType;

    fn compiled(http: Vec<proto::HttpRoute>) -> VirtualService {
        VirtualService::compile(&object("vs", 1, http)).unwrap()
    }

    fn header(value: &str) -> proto::HttpMatch {
        let is = proto::StringMatch {
            match_type: Some(MatchType::Exact(value.into())),
        };
        proto::HttpMatch {
            headers: [("x-user".to_owned(), is)].into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_large_object_keeps_the_order_of_its_rules() {
        let mut http: Vec<_> = (0..100)
            .map(|n| rule("exact", vec![uri(MatchType::Exact(format!("/{n}")))]))
            .collect();
        http.insert(50, rule("start", vec![uri(MatchType::Prefix("/7".into()))]));
        http.insert(20, rule("user", vec![header("seven")]));
        http.push(rule("last", vec![]));
        let object = compiled(http);
        assert!(object.finder.index.is_some());
        let mut headers = HeaderMap::new();
        let found = |path: &str, headers: &HeaderMap| {
            let place = object
                .finder
                .first(&object.http, &call(path, headers), &caller());
            place.map(|place| (place.route, object.http[place.route].name.clone()))
        };
        let at = |route, name: &str| Some((route, name.to_owned()));
        assert_eq!(found("/7", &headers), at(7, "exact"));
        assert_eq!(found("/77", &headers), at(51, "start"));
        assert_eq!(found("/30", &headers), at(31, "exact"));
        assert_eq!(found("/none", &headers), at(102, "last"));
        headers.insert("x-user", HeaderValue::from_static("seven"));
        assert_eq!(found("/77", &headers), at(20, "user"));
        assert_eq!(found("/7", &headers), at(7, "exact"));
    }

    #[test]
    fn only_blocks_whose_value_the_request_has_are_asked() {
        let http: Vec<_> = (0..1000)
            .map(|n| rule("exact", vec![uri(MatchType::Exact(format!("/{n}")))]))
            .collect();
        let object = compiled(http);
        let index = object.finder.index.as_ref().unwrap();
        let headers = HeaderMap::new();
        let asked = |path| {
            index
                .lists(&call(path, &headers))
                .map(<[_]>::len)
                .sum::<usize>()
        };
        assert_eq!((asked("/999"), asked("/none")), (1, 0));
    }
}
