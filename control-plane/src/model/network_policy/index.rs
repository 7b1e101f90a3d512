//! Which of many things label selectors take, looked up by label: the policies of one namespace may have
//! thousands of selectors, each over every pod of the mesh.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

const WORD: usize = 64;

/// A set of numbers below a bound. Sets of the same bound can be compared and joined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// None of the numbers below `bound`.
    pub(super) fn none(bound: usize) -> Self {
        Self(vec![0; bound.div_ceil(WORD)])
    }

    fn all(bound: usize) -> Self {
        let mut all = Self::none(bound);
        all.insert_range(0..bound);
        all
    }

    /// Adds a number; one above the bound changes nothing.
    pub(super) fn insert(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / WORD) {
            *word |= 1 << (number % WORD);
        }
    }

    /// Adds each number of a range.
    pub(super) fn insert_range(&mut self, range: Range<usize>) {
        let mut next = range.start;
        while next < range.end {
            if next.is_multiple_of(WORD) && range.end - next >= WORD {
                if let Some(word) = self.0.get_mut(next / WORD) {
                    *word = u64::MAX;
                }
                next += WORD;
            } else {
                self.insert(next);
                next += 1;
            }
        }
    }

    /// True if the number is in here.
    pub(super) fn contains(&self, number: usize) -> bool {
        let word = self.0.get(number / WORD);
        word.is_some_and(|word| word & (1 << (number % WORD)) != 0)
    }

    /// True if there is a number in both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .any(|(own, other)| own & other != 0)
    }

    /// Adds what is in `other`.
    pub(super) fn add(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own |= other;
        }
    }

    /// Keeps what is in `other` too.
    pub(super) fn keep(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own &= other;
        }
    }

    fn drop_all(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own &= !other;
        }
    }

    /// The numbers, smallest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(at * WORD + bit)
            })
        })
    }
}

impl Extend<usize> for Bits {
    fn extend<T: IntoIterator<Item = usize>>(&mut self, numbers: T) {
        for number in numbers {
            self.insert(number);
        }
    }
}

/// Things by their labels; things are numbered in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Index<'a> {
    count: usize,
    by_key: HashMap<&'a str, Labelled<'a>>,
}

/// Who has a label.
#[derive(Debug, Default)]
struct Labelled<'a> {
    any: Vec<usize>,
    by_value: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Index<'a> {
    /// Adds a thing with these labels, each key once.
    pub(super) fn push(&mut self, labels: impl Iterator<Item = (&'a str, &'a str)>) {
        for (key, value) in labels {
            let labelled = self.by_key.entry(key).or_default();
            labelled.any.push(self.count);
            labelled.by_value.entry(value).or_default().push(self.count);
        }
        self.count += 1;
    }

    /// Things that the selector takes, as [`isobar_objects::selectors::selects`] has it.
    pub(super) fn select(&self, selector: &LabelSelector) -> Bits {
        let mut taken = Bits::all(self.count);
        for (key, value) in selector.match_labels.iter().flatten() {
            taken.keep(&self.with_values(key, std::iter::once(value)));
        }
        for rule in selector.match_expressions.iter().flatten() {
            let listed = || self.with_values(&rule.key, rule.values.iter().flatten());
            match rule.operator.as_str() {
                "In" => taken.keep(&listed()),
                "NotIn" => taken.drop_all(&listed()),
                "Exists" => taken.keep(&self.with_key(&rule.key)),
                "DoesNotExist" => taken.drop_all(&self.with_key(&rule.key)),
                _ => return Bits::none(self.count),
            }
        }
        taken
    }

    fn with_key(&self, key: &str) -> Bits {
        let labelled = self.by_key.get(key);
        self.bits(labelled.into_iter().flat_map(|one| &one.any))
    }

    fn with_values<'v>(&self, key: &str, values: impl Iterator<Item = &'v String>) -> Bits {
        let labelled = self.by_key.get(key);
        let found = values.filter_map(|value| labelled?.by_value.get(value.as_str()));
        self.bits(found.flatten())
    }

    fn bits<'n>(&self, numbers: impl Iterator<Item = &'n usize>) -> Bits {
        let mut bits = Bits::none(self.count);
        bits.extend(numbers.copied());
        bits
    }
}

/// Labels as an index takes them.
pub(super) fn pairs(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
}

#[cfg(test)]
mod tests {
    use isobar_objects::selectors;
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::json;

    use super::*;

    #[test]
    fn ranges_are_their_numbers() {
        for (start, end) in [(0, 0), (0, 64), (3, 70), (60, 200), (128, 192), (64, 65)] {
            let mut bits = Bits::none(200);
            bits.insert_range(start..end);
            assert!(bits.iter().eq(start..end), "{start}..{end}: {bits:?}");
            assert!((0..300).all(|at| bits.contains(at) == (start..end).contains(&at)));
        }
    }

    fn some_selector() -> impl Strategy<Value = LabelSelector> {
        let key = || select(vec!["a", "b", "c"]);
        let value = || select(vec!["1", "2", "3"]);
        let operator = select(vec!["In", "NotIn", "Exists", "DoesNotExist", "Sometimes"]);
        let rule = (key(), operator, prop::collection::vec(value(), 0..3));
        let labels = prop::collection::btree_map(key(), value(), 0..2);
        (labels, prop::collection::vec(rule, 0..3)).prop_map(|(labels, rules)| {
            let rules = rules.into_iter().map(|(key, operator, values)| {
                json!({"key": key, "operator": operator, "values": values})
            });
            let rules: Vec<_> = rules.collect();
            let text = json!({"matchLabels": labels, "matchExpressions": rules});
            serde_json::from_value(text).unwrap()
        })
    }

    proptest! {
        #[test]
        fn an_index_finds_what_selectors_take(
            things in prop::collection::vec(
                prop::collection::btree_map("[abc]", "[123]", 0..3), 0..150),
            selector in some_selector(),
        ) {
            let mut index = Index::default();
            for labels in &things {
                index.push(pairs(labels));
            }
            let wanted = things.iter().enumerate();
            let wanted = wanted.filter(|(_, labels)| selectors::selects(&selector, labels));
            let found = index.select(&selector);
            prop_assert!(found.iter().eq(wanted.map(|(at, _)| at)), "{:?}", found);
        }
    }
}
