use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::rounds::Sample;
use super::{Contender, Results};
use crate::l4::median;

const ALL: [Contender; 3] = [Contender::NoProxy, Contender::Ours, Contender::Envoy];

/// Writes `l7.md` and `l7.json` into `folder`.
pub(super) fn write(results: &Results, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let write = |file: &str, text: String| {
        let path = folder.join(file);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("l7.md", markdown(results))?;
    write("l7.json", serde_json::to_string_pretty(results)?)
}

/// The report as text.
pub(super) fn markdown(results: &Results) -> String {
    let mut text = String::from("# L7 benchmark\n\n");
    let _ = writeln!(
        text,
        "Kernel {}, {} cores; a proxy has one worker and the first core, everybody else has the rest. Medians; ratios are medians of the ratios within each round.",
        results.kernel, results.cores
    );
    loads(results, &mut text);
    pushes(results, &mut text);
    memory(results, &mut text);
    text
}

/// One figure of a load: how to get it and how to show it.
struct Figure {
    name: &'static str,
    show: fn(f64) -> String,
    get: fn(&Sample) -> f64,
    /// There is none without a proxy.
    of_proxy: bool,
}

const fn figure(
    name: &'static str,
    show: fn(f64) -> String,
    get: fn(&Sample) -> f64,
    of_proxy: bool,
) -> Figure {
    Figure {
        name,
        show,
        get,
        of_proxy,
    }
}

fn each(sample: &Sample, cpu: f64) -> f64 {
    cpu * 1e6 / sample.measured.requests.max(1) as f64
}

fn micros(value: f64) -> String {
    format!("{value:.1} µs")
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

fn mib(kib: f64) -> String {
    format!("{:.1} MiB", kib / 1024.0)
}

const FIGURES: [Figure; 8] = [
    figure(
        "requests/s",
        whole,
        |s| s.measured.requests as f64 / s.measured.seconds,
        false,
    ),
    figure(
        "CPU of the proxy, each",
        micros,
        |s| each(s, s.proxy_cpu),
        true,
    ),
    // Less than the whole: somebody else was the limit, and requests a second say little.
    figure(
        "processor the proxy used",
        |part| format!("{:.0} %", part * 100.0),
        |s| s.proxy_cpu / s.measured.seconds,
        true,
    ),
    figure(
        "CPU of everything, each",
        micros,
        |s| each(s, s.all_cpu),
        false,
    ),
    figure("p50", micros, |s| s.measured.p50_us as f64, false),
    figure("p99", micros, |s| s.measured.p99_us as f64, false),
    figure("failed", whole, |s| s.measured.failed as f64, false),
    figure("RSS after", mib, |s| s.rss_kib as f64, true),
];

fn loads(results: &Results, text: &mut String) {
    let mut names: Vec<&str> = Vec::new();
    for sample in &results.loads {
        if !names.contains(&&*sample.load) {
            names.push(&sample.load);
        }
    }
    for name in names {
        let of: Vec<_> = results.loads.iter().filter(|s| s.load == name).collect();
        let took_part = |who: &Contender| of.iter().any(|s| s.contender == *who);
        let shown: Vec<_> = ALL.into_iter().filter(took_part).collect();
        let columns: Vec<_> = shown.iter().map(|who| who.name()).collect();
        let rule = "---:|".repeat(shown.len() + 1);
        let _ = writeln!(
            text,
            "\n## {name}\n\n| figure | {} | isobar / Envoy |\n|---|{rule}",
            columns.join(" | ")
        );
        for figure in &FIGURES {
            let _ = writeln!(text, "{}", row(&of, &shown, figure));
        }
    }
}

fn row(samples: &[&Sample], shown: &[Contender], figure: &Figure) -> String {
    let mut row = format!("| {} |", figure.name);
    for &contender in shown {
        let of = samples.iter().filter(|s| s.contender == contender);
        let cell = median(of.map(|s| (figure.get)(s)).collect());
        let told = !figure.of_proxy || contender != Contender::NoProxy;
        match cell.filter(|_| told) {
            Some(value) => drop(write!(row, " {} |", (figure.show)(value))),
            None => row.push_str(" - |"),
        }
    }
    match ratio(samples, figure.get) {
        Some(ratio) => drop(write!(row, " {ratio:.2} |")),
        None => row.push_str(" - |"),
    }
    row
}

/// Median over the rounds of ours divided by Envoy's.
fn ratio(samples: &[&Sample], get: fn(&Sample) -> f64) -> Option<f64> {
    let of = |contender, round| {
        let mut all = samples.iter();
        all.find(|s| s.contender == contender && s.round == round)
            .map(|s| get(s))
    };
    let rounds = samples.iter().map(|s| s.round).max()?;
    let pairs = (1..=rounds).filter_map(|round| {
        let (ours, envoys) = (of(Contender::Ours, round)?, of(Contender::Envoy, round)?);
        (envoys > 0.0).then_some(ours / envoys)
    });
    median(pairs.collect())
}

fn pushes(results: &Results, text: &mut String) {
    if results.pushes.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n## One route changes under load\n\n| | routes | changes | first effect p50 | p99 | longest | requests | failed | their p99 | CPU of the proxy |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    for s in &results.pushes {
        let mut sorted = s.effect_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(index).copied().unwrap_or_default()
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.1} ms | {:.1} ms | {:.1} ms | {} | {} | {} | {:.2} s |",
            s.contender.name(),
            s.routes,
            s.effect_ms.len(),
            at(50),
            at(99),
            at(100),
            s.requests,
            s.failed,
            micros(s.p99_us as f64),
            s.proxy_cpu,
        );
    }
}

fn memory(results: &Results, text: &mut String) {
    if results.memory.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n## Memory\n\n| | idle | after all loads | with more services | for 1,000 services |\n|---|---:|---:|---:|---:|"
    );
    for s in &results.memory {
        let more = s.services_kib.saturating_sub(s.idle_kib) as f64;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} ({} more) | {} |",
            s.contender.name(),
            mib(s.idle_kib as f64),
            mib(s.loaded_kib as f64),
            mib(s.services_kib as f64),
            s.services,
            mib(more * 1000.0 / f64::from(s.services.max(1))),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::caller::Measured;
    use super::*;

    fn sample(contender: Contender, round: u32, proxy_cpu: f64) -> Sample {
        Sample {
            load: "some".to_owned(),
            contender,
            round,
            measured: Measured {
                requests: 1_000_000,
                seconds: 10.0,
                ..Measured::default()
            },
            proxy_cpu,
            all_cpu: proxy_cpu * 2.0,
            rss_kib: 2048,
        }
    }

    #[test]
    fn ratios_are_within_a_round() {
        let results = Results {
            loads: vec![
                sample(Contender::NoProxy, 1, 0.0),
                sample(Contender::Ours, 1, 10.0),
                sample(Contender::Envoy, 1, 40.0),
                sample(Contender::Ours, 2, 30.0),
                sample(Contender::Envoy, 2, 60.0),
                sample(Contender::Envoy, 3, 50.0),
                sample(Contender::Ours, 3, 10.0),
            ],
            ..Results::default()
        };
        let text = markdown(&results);
        let wanted = "| CPU of the proxy, each | - | 10.0 µs | 50.0 µs | 0.25 |";
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains("| RSS after | - | 2.0 MiB | 2.0 MiB | 1.00 |"));
    }
}
