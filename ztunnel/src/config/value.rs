//! Forms of values: durations, booleans, CPU quantities.

use std::time::Duration;

/// Istio's durations: numbers with a unit, added up (`1h30m`, `100ms`).
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

/// A Kubernetes CPU quantity (`2`, `1.5`, `500m`) in whole cores, rounded up; never 0.
pub(super) fn cores(text: &str) -> Option<usize> {
    let millis: f64 = match text.strip_suffix('m') {
        Some(millis) => millis.parse().ok()?,
        None => text.parse::<f64>().ok()? * 1000.0,
    };
    let cores = (millis / 1000.0).ceil();
    (1.0..=65_536.0).contains(&cores).then_some(cores as usize)
}

/// Writes a duration as seconds.
pub(super) mod seconds {
    use super::Duration;
    use serde::Serializer;

    pub(in crate::config) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}s", duration.as_secs_f64()))
    }
}
