//! When rules that are not as wished are somebody else's doing.

use crate::plan::Wishes;

/// How an enrolled pod's rules were left.
#[derive(Debug, Default)]
pub(super) struct Left(Option<Wishes>);

impl Left {
    /// They were seen to be what these wishes make.
    pub(super) fn whole(&mut self, wishes: &Wishes) {
        if self.0.as_ref() != Some(wishes) {
            self.0 = Some(wishes.clone());
        }
    }

    /// From now on nothing is known of them.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }

    /// They are not what these wishes make: true if they were, so that somebody damaged them. If
    /// others were wished, they are only to be written anew. Told once.
    pub(super) fn is_damaged(&mut self, wishes: &Wishes) -> bool {
        self.0.take().is_some_and(|left| left == *wishes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wished_otherwise_is_no_damage() {
        let (before, after) = (
            Wishes::default(),
            Wishes {
                dns: false,
                ..Wishes::default()
            },
        );
        let mut left = Left::default();
        assert!(!left.is_damaged(&before), "never seen whole");
        left.whole(&before);
        assert!(left.is_damaged(&before));
        assert!(!left.is_damaged(&before), "told once");
        left.whole(&before);
        assert!(!left.is_damaged(&after));
        left.whole(&after);
        left.forget();
        assert!(!left.is_damaged(&after));
    }
}
