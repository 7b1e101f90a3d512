use isobar_proto::isobar::v1 as proto;

use crate::call::Labels;

/// Where a workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Region.
    pub region: &'a str,
    /// Zone in the region.
    pub zone: &'a str,
    /// Subzone in the zone.
    pub subzone: &'a str,
    /// Labels, as far as rules name them.
    pub labels: Option<&'a Labels>,
}

/// Preference by the caller's place (`localityLbSetting`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalityRules {
    off: bool,
    distribute: Vec<(Pattern, Vec<(Pattern, u32)>)>,
    failover: Vec<(String, String)>,
    priority: Vec<(String, Option<String>)>,
}

/// `region/zone/subzone`, shorter, or with `*` at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern(Vec<String>);

impl Pattern {
    fn new(text: &str) -> Self {
        let parts = text.split('/').take_while(|part| *part != "*");
        Self(parts.map(str::to_owned).collect())
    }

    fn holds(&self, place: &Place<'_>) -> bool {
        let have = [place.region, place.zone, place.subzone];
        self.0.len() <= have.len() && self.0.iter().zip(have).all(|(want, have)| want == have)
    }
}

/// What the caller's place means for one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preference {
    /// Taken only if none of a smaller number is left.
    Rank(u32),
    /// Of the locality group of this number, which gets this share of the traffic.
    Share(usize, u32),
    /// Gets nothing.
    Never,
}

impl LocalityRules {
    pub(crate) fn compile(from: &proto::LocalityBalancing) -> Self {
        let to = |one: &proto::locality_balancing::Distribute| {
            let shares = one.to.iter();
            let mut shares: Vec<_> = shares.map(|(p, w)| (Pattern::new(p), *w)).collect();
            // The most exact first.
            shares.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.0.len()));
            (Pattern::new(&one.from), shares)
        };
        Self {
            off: from.off,
            distribute: from.distribute.iter().map(to).collect(),
            failover: from
                .failover
                .iter()
                .map(|one| (one.from.clone(), one.to.clone()))
                .collect(),
            priority: from
                .failover_priority
                .iter()
                .map(|entry| match entry.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (entry.clone(), None),
                })
                .collect(),
        }
    }

    /// True if the place of caller and endpoint counts. Without outlier detection only shares do:
    /// nothing would ever send traffic elsewhere.
    #[must_use]
    pub fn counts(&self, outliers: bool) -> bool {
        !self.off && (outliers || !self.distribute.is_empty())
    }

    /// What a caller's place means for an endpoint.
    #[must_use]
    pub fn preference(&self, caller: &Place<'_>, endpoint: &Place<'_>) -> Preference {
        let shares = self.distribute.iter().find(|(from, _)| from.holds(caller));
        if let Some((_, shares)) = shares {
            let mut shares = shares.iter().enumerate();
            let found = shares.find(|(_, (to, share))| *share > 0 && to.holds(endpoint));
            return found.map_or(Preference::Never, |(at, (_, share))| {
                Preference::Share(at, *share)
            });
        }
        if !self.distribute.is_empty() {
            return Preference::Rank(0);
        }
        Preference::Rank(self.by_labels(caller, endpoint) * 5 + self.by_place(caller, endpoint))
    }

    /// Labels that do not agree, counted from the first that does not.
    fn by_labels(&self, caller: &Place<'_>, endpoint: &Place<'_>) -> u32 {
        let agrees = |(key, wanted): &&(String, Option<String>)| {
            let have = label(endpoint, key);
            let want = wanted.as_deref().or_else(|| label(caller, key));
            want.is_some() && have == want
        };
        let agreeing = self.priority.iter().take_while(agrees).count();
        u32::try_from(self.priority.len() - agreeing).unwrap_or(u32::MAX / 8)
    }

    fn by_place(&self, caller: &Place<'_>, endpoint: &Place<'_>) -> u32 {
        if !self.priority.is_empty() && self.failover.is_empty() {
            return 0;
        }
        if caller.region != endpoint.region {
            let named = self.failover.iter().find(|(from, _)| from == caller.region);
            return match named {
                Some((_, to)) if to == endpoint.region => 3,
                Some(_) => 4,
                None => 3,
            };
        }
        if caller.zone != endpoint.zone {
            2
        } else {
            u32::from(caller.subzone != endpoint.subzone)
        }
    }

    /// Label keys that are compared.
    pub fn label_keys(&self) -> impl Iterator<Item = &str> {
        self.priority.iter().map(|(key, _)| key.as_str())
    }
}

fn label<'a>(place: &Place<'a>, key: &str) -> Option<&'a str> {
    match key {
        "topology.kubernetes.io/region" => Some(place.region).filter(|r| !r.is_empty()),
        "topology.kubernetes.io/zone" => Some(place.zone).filter(|z| !z.is_empty()),
        "topology.istio.io/subzone" => Some(place.subzone).filter(|s| !s.is_empty()),
        _ => place.labels?.get(key).map(String::as_str),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &'static str) -> Place<'static> {
        let mut parts = text.split('/');
        let mut next = || parts.next().unwrap_or("");
        Place {
            region: next(),
            zone: next(),
            subzone: next(),
            labels: None,
        }
    }

    fn rank(rules: &LocalityRules, from: &'static str, to: &'static str) -> Preference {
        rules.preference(&place(from), &place(to))
    }

    #[test]
    fn nearer_comes_first_and_named_regions_before_others() {
        let plain = LocalityRules::compile(&proto::LocalityBalancing::default());
        let near = ["r/z/s", "r/z/t", "r/y/s", "q/z/s"];
        let ranks: Vec<_> = near.iter().map(|to| rank(&plain, "r/z/s", to)).collect();
        let expected: Vec<_> = (0..4).map(Preference::Rank).collect();
        assert_eq!(ranks, expected);
        assert!(plain.counts(true) && !plain.counts(false));
        let named = LocalityRules::compile(&proto::LocalityBalancing {
            failover: vec![proto::locality_balancing::Failover {
                from: "r".into(),
                to: "p".into(),
            }],
            ..Default::default()
        });
        assert_eq!(rank(&named, "r/z", "p/a"), Preference::Rank(3));
        assert_eq!(rank(&named, "r/z", "q/a"), Preference::Rank(4));
        assert_eq!(rank(&named, "q/z", "r/a"), Preference::Rank(3));
    }

    #[test]
    fn shares_are_those_of_the_callers_place() {
        let rules = LocalityRules::compile(&proto::LocalityBalancing {
            distribute: vec![proto::locality_balancing::Distribute {
                from: "r/z/*".into(),
                to: [("r/z".to_owned(), 80), ("r/*".to_owned(), 20)].into(),
            }],
            ..Default::default()
        });
        assert!(rules.counts(false));
        assert_eq!(rank(&rules, "r/z/s", "r/z/t"), Preference::Share(0, 80));
        assert_eq!(rank(&rules, "r/z/s", "r/y/t"), Preference::Share(1, 20));
        assert_eq!(rank(&rules, "r/z/s", "q/y/t"), Preference::Never);
        assert_eq!(rank(&rules, "r/y/s", "q/y/t"), Preference::Rank(0));
    }

    #[test]
    fn a_place_of_no_share_is_as_if_it_were_not_named() {
        let rules = LocalityRules::compile(&proto::LocalityBalancing {
            distribute: vec![proto::locality_balancing::Distribute {
                from: "r".into(),
                to: [("r/z".to_owned(), 0), ("r/*".to_owned(), 100)].into(),
            }],
            ..Default::default()
        });
        assert_eq!(rank(&rules, "r/z", "r/z"), Preference::Share(1, 100));
    }

    #[test]
    fn labels_of_a_place_are_the_place() {
        for (key, same, other) in [
            ("topology.kubernetes.io/region", "r/y/t", "q/z/s"),
            ("topology.kubernetes.io/zone", "q/z/t", "r/y/s"),
            ("topology.istio.io/subzone", "q/y/s", "r/z/t"),
        ] {
            let rules = LocalityRules::compile(&proto::LocalityBalancing {
                failover_priority: vec![key.into()],
                ..Default::default()
            });
            assert_eq!(rank(&rules, "r/z/s", same), Preference::Rank(0), "{key}");
            assert_eq!(rank(&rules, "r/z/s", other), Preference::Rank(5), "{key}");
            // Nobody is where nobody is.
            assert_eq!(rank(&rules, "//", "//"), Preference::Rank(5), "{key}");
        }
    }

    #[test]
    fn labels_are_compared_in_order() {
        let rules = LocalityRules::compile(&proto::LocalityBalancing {
            failover_priority: vec!["topology.kubernetes.io/region".into(), "tier=gold".into()],
            ..Default::default()
        });
        let gold = Labels::from([("tier".into(), "gold".into())]);
        let of = |to: &'static str, labels| {
            let endpoint = Place {
                labels,
                ..place(to)
            };
            rules.preference(&place("r/z"), &endpoint)
        };
        assert_eq!(of("r/y", Some(&gold)), Preference::Rank(0));
        assert_eq!(of("r/y", None), Preference::Rank(5));
        assert_eq!(of("q/y", Some(&gold)), Preference::Rank(10));
        assert!(rules.label_keys().any(|key| key == "tier"));
    }

    #[test]
    fn it_counts_where_it_is_on_and_has_what_it_needs() {
        let counts = |off: bool, shares: bool, outliers: bool| {
            let one = proto::locality_balancing::Distribute {
                from: "r1".into(),
                to: [("r1".to_owned(), 100)].into(),
            };
            let rules = LocalityRules::compile(&proto::LocalityBalancing {
                off,
                distribute: if shares { vec![one] } else { Vec::new() },
                failover_priority: if shares { Vec::new() } else { vec!["a".into()] },
                ..Default::default()
            });
            rules.counts(outliers)
        };
        assert!(counts(false, true, false));
        assert!(counts(false, false, true));
        assert!(!counts(false, false, false));
        assert!(!counts(true, true, true));
        assert!(!counts(true, false, true));
    }
}
