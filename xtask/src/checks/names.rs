//! Which rows of a list a test stands for, by its name.

/// The numbers after `prefix` (`check_`, `r_`) in the labels a test's name starts with, whatever
/// module it is in: `check_46_r_01_r_02_nothing_is_lost` has 46, and 1 and 2.
pub(super) fn numbers_of(name: &str, prefix: &str) -> Vec<usize> {
    let mut rest = name.rsplit("::").next().unwrap_or(name);
    let mut numbers = Vec::new();
    loop {
        let labelled = ["check_", "r_"]
            .into_iter()
            .find_map(|label| Some((label, rest.strip_prefix(label)?)));
        let Some((label, after)) = labelled else {
            return numbers;
        };
        let Some((digits, next)) = after.split_once('_') else {
            return numbers;
        };
        let (Ok(number), 2) = (digits.parse(), digits.len()) else {
            return numbers;
        };
        if label == prefix {
            numbers.push(number);
        }
        rest = next;
    }
}

/// Functions in a source text that stand for a number after `prefix`.
pub(super) fn tests_in<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (before, name) = line.split_once("fn ")?;
        if !matches!(before.trim(), "" | "async" | "pub" | "pub(crate)") {
            return None;
        }
        let name = name.split(['(', '<']).next()?;
        (!numbers_of(name, prefix).is_empty()).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_stand_for_several_numbers() {
        assert_eq!(
            numbers_of("mesh::check_46_r_01_r_03_x_r_09_y", "r_"),
            [1, 3]
        );
        assert_eq!(
            numbers_of("mesh::check_46_r_01_r_03_x_check_02_y", "check_"),
            [46]
        );
        assert!(numbers_of("r_1_short", "r_").is_empty());
        assert!(numbers_of("r_001_long", "r_").is_empty());
        assert!(numbers_of("check_07_only", "r_").is_empty());
        assert!(numbers_of("r_07", "r_").is_empty());
    }

    #[test]
    fn tests_are_found_by_name() {
        let source = "    async fn check_07_tries_again() {\nfn check_7_no() {\n\
                      // fn check_08_comment()\nfn check_50_all<T>() {\nfn r_10_cheap() {";
        let names: Vec<_> = tests_in(source, "check_").collect();
        assert_eq!(names, ["check_07_tries_again", "check_50_all"]);
        let names: Vec<_> = tests_in(source, "r_").collect();
        assert_eq!(names, ["r_10_cheap"]);
    }
}
