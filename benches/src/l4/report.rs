use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::rounds::{Sample, Unit};
use super::{Contender, Results};

const ALL: [Contender; 5] = [
    Contender::NoMesh,
    Contender::Floor,
    Contender::Ours,
    Contender::ShortCut,
    Contender::Peer,
];

/// Writes `l4.md` and `l4.json` into `folder`.
pub(super) fn write(results: &Results, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let write = |file: &str, text: String| {
        let path = folder.join(file);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("l4.md", markdown(results))?;
    write("l4.json", serde_json::to_string_pretty(results)?)
}

/// The report as text.
pub(super) fn markdown(results: &Results) -> String {
    let mut text = String::from("# L4 benchmark\n\n");
    let machine = &results.machine;
    let _ = writeln!(
        text,
        "Kernel {}, {} cores. Medians; ratios are medians of the ratios within each round.",
        machine.kernel, machine.cores
    );
    if let Some(peer) = &machine.peer {
        let _ = writeln!(text, "\nPeer: `{}`", peer.replace('\n', " "));
    }
    loads(results, &mut text);
    idle(results, &mut text);
    scale(results, &mut text);
    text
}

type Show = fn(f64) -> String;

/// One figure of a load: how to get it and how to show it.
struct Figure {
    name: &'static str,
    show: Show,
    get: fn(&Sample) -> f64,
}

const fn figure(name: &'static str, show: Show, get: fn(&Sample) -> f64) -> Figure {
    Figure { name, show, get }
}

fn micros(value: f64) -> String {
    format!("{value:.0} µs")
}

fn mib(value: f64) -> String {
    format!("{:.1} MiB", value / 1024.0)
}

fn per_unit(sample: &Sample, cpu: f64) -> f64 {
    cpu / sample.measured.units.max(1) as f64
}

fn figures(unit: Unit) -> Vec<Figure> {
    let (rate, cost): (Show, Show) = match unit {
        Unit::Bytes => (
            |v| format!("{:.2} Gbit/s", v * 8.0 / 1e9),
            |v| format!("{:.2} s/GB", v * 1e9),
        ),
        Unit::Requests | Unit::Connections => {
            (|v| format!("{v:.0}/s"), |v| format!("{:.1} µs", v * 1e6))
        }
    };
    let mut all = vec![
        figure("rate", rate, |s| {
            s.measured.units as f64 / s.measured.seconds
        }),
        figure("CPU, both ends", cost, |s| {
            per_unit(s, s.near_cpu + s.far_cpu)
        }),
        figure("CPU, client's node", cost, |s| per_unit(s, s.near_cpu)),
        figure("CPU, server's node", cost, |s| per_unit(s, s.far_cpu)),
    ];
    if unit != Unit::Bytes {
        all.push(figure("p50", micros, |s| s.measured.p50_us as f64));
        all.push(figure("p99", micros, |s| s.measured.p99_us as f64));
    }
    all.push(figure(
        "failed",
        |v| format!("{v:.0}"),
        |s| s.measured.failed as f64,
    ));
    all.push(figure("RSS after, larger", mib, |s| {
        s.near_rss_kib.max(s.far_rss_kib) as f64
    }));
    all
}

fn loads(results: &Results, text: &mut String) {
    let mut names: Vec<(&str, Unit)> = Vec::new();
    for sample in &results.loads {
        if !names.contains(&(sample.load, sample.unit)) {
            names.push((sample.load, sample.unit));
        }
    }
    for (name, unit) in names {
        let _ = writeln!(text, "\n## {name}\n");
        let of: Vec<_> = results.loads.iter().filter(|s| s.load == name).collect();
        let took_part = |who: &Contender| of.iter().any(|s| s.contender == *who);
        let shown: Vec<_> = ALL.into_iter().filter(took_part).collect();
        let mut columns: Vec<_> = shown.iter().map(|who| who.name().to_owned()).collect();
        columns.extend(compared(&shown).map(|who| format!("{} / peer", who.name())));
        let rule = "---:|".repeat(columns.len());
        let _ = writeln!(text, "| figure | {} |\n|---|{rule}", columns.join(" | "));
        for figure in figures(unit) {
            let _ = writeln!(text, "{}", row(&of, &shown, &figure));
        }
    }
}

/// Ours among those `shown`, if there is a peer to compare with.
fn compared(shown: &[Contender]) -> impl Iterator<Item = Contender> {
    let ours = |who: &Contender| matches!(who, Contender::Ours | Contender::ShortCut);
    let peer = shown.contains(&Contender::Peer);
    shown.iter().copied().filter(move |who| peer && ours(who))
}

fn row(samples: &[&Sample], shown: &[Contender], figure: &Figure) -> String {
    let mut row = format!("| {} |", figure.name);
    for &contender in shown {
        let of = samples.iter().filter(|s| s.contender == contender);
        let cell = median(of.map(|s| (figure.get)(s)).collect());
        let proxied = !matches!(contender, Contender::NoMesh);
        let told = proxied || !(figure.name.starts_with("CPU") || figure.name.starts_with("RSS"));
        match cell.filter(|_| told) {
            Some(value) => drop(write!(row, " {} |", (figure.show)(value))),
            None => row.push_str(" - |"),
        }
    }
    for who in compared(shown) {
        match ratio(samples, who, figure.get) {
            Some(ratio) => drop(write!(row, " {ratio:.2} |")),
            None => row.push_str(" - |"),
        }
    }
    row
}

/// Median over the rounds of what `who` has divided by the peer's.
fn ratio(samples: &[&Sample], who: Contender, get: fn(&Sample) -> f64) -> Option<f64> {
    let of = |contender, round| {
        let mut all = samples.iter();
        all.find(|s| s.contender == contender && s.round == round)
            .map(|s| get(s))
    };
    let rounds = samples.iter().map(|s| s.round).max()?;
    let pairs = (1..=rounds).filter_map(|round| {
        let (ours, peer) = (of(who, round)?, of(Contender::Peer, round)?);
        (peer > 0.0).then_some(ours / peer)
    });
    median(pairs.collect())
}

fn idle(results: &Results, text: &mut String) {
    if results.idle.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n## Open and idle\n\n| | open | RSS client's node | RSS server's node | each, client's node | each, server's node |\n|---|---:|---:|---:|---:|---:|"
    );
    for s in &results.idle {
        let _ = writeln!(
            text,
            "| {} | {} {} | {} | {} | {:.1} KiB | {:.1} KiB |",
            s.contender.name(),
            s.open,
            s.what,
            mib(s.near_rss_kib as f64),
            mib(s.far_rss_kib as f64),
            s.near_each_kib,
            s.far_each_kib
        );
    }
}

fn scale(results: &Results, text: &mut String) {
    if results.scale.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n## Workloads over xDS\n\n| | workloads | ready | CPU until ready | RSS | 1 % changed: until ACK | CPU each | RSS after | longest request, quiet | longest request during changes |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    for s in &results.scale {
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} s | {:.2} s | {} | {:.1} ms | {:.0} ms | {} | {:.1} ms | {:.1} ms |",
            s.contender.name(),
            s.workloads,
            s.ready_seconds,
            s.ready_cpu,
            mib(s.rss_kib as f64),
            median(s.churn_ms.clone()).unwrap_or_default(),
            s.churn_cpu * 1000.0 / s.churn_ms.len().max(1) as f64,
            mib(s.churned_rss_kib as f64),
            s.quiet_wait_ms,
            s.churn_wait_ms,
        );
    }
}

/// The middle; between the two in the middle of an even number.
/// Middle of the figures.
pub(crate) fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let upper = *figures.get(figures.len() / 2)?;
    let lower = figures[(figures.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Measured;

    fn sample(contender: Contender, round: u32, units: u64) -> Sample {
        Sample {
            load: "HTTP",
            unit: Unit::Requests,
            contender,
            round,
            measured: Measured {
                units,
                seconds: 1.0,
                ..Measured::default()
            },
            near_cpu: 1.0,
            far_cpu: 1.0,
            near_rss_kib: 1024,
            far_rss_kib: 2048,
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was twice as fast in the second round: 2, 2 and 4, not 200 / 100 by chance.
        let all = [(1, 200, 100), (2, 400, 200), (3, 400, 100)];
        let results = Results {
            loads: all
                .iter()
                .flat_map(|&(round, ours, peer)| {
                    [
                        sample(Contender::Ours, round, ours),
                        sample(Contender::Peer, round, peer),
                    ]
                })
                .collect(),
            ..Results::default()
        };
        let text = markdown(&results);
        assert!(text.contains("| rate | 400/s | 100/s | 2.00 |"), "{text}");
        assert!(
            text.contains("| RSS after, larger | 2.0 MiB | 2.0 MiB | 1.00 |"),
            "{text}"
        );
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }
}
