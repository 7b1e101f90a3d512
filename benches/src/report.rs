use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

use crate::scenario::{Sample, Way};

const COLUMNS: [&str; 10] = [
    "load",
    "way",
    "rate",
    "of no mesh",
    "p50 µs",
    "p99 µs",
    "failed",
    "ztunnels CPU",
    "waypoint CPU",
    "RSS MiB (ztunnel / waypoint)",
];

/// Prints the table of medians and writes it and every figure into `folder`.
pub(crate) fn write(samples: &[Sample], folder: &Path) -> Result<()> {
    let table = table(samples);
    println!("{table}");
    println!(
        "Medians. CPU is that of both node proxies, and of the waypoint, per GB or per unit.\n\
         Rates on one machine differ by tens of percent between runs: compare within a run."
    );
    std::fs::create_dir_all(folder)?;
    let write = |file: &str, text: String| {
        let path = folder.join(file);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("table.txt", format!("{table}\n"))?;
    write("results.json", serde_json::to_string_pretty(samples)?)?;
    println!("Written to {}", folder.display());
    Ok(())
}

fn table(samples: &[Sample]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(COLUMNS);
    let mut seen: Vec<(&str, Way)> = Vec::new();
    for sample in samples {
        let key = (sample.load, sample.way);
        if !seen.contains(&key) {
            seen.push(key);
        }
    }
    for (load, way) in seen {
        table.add_row(row(samples, load, way));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(samples: &[Sample], load: &str, way: Way) -> Vec<String> {
    let of = |way: Way, figure: &dyn Fn(&Sample) -> f64| {
        median(
            samples
                .iter()
                .filter(|s| s.load == load && s.way == way)
                .map(figure)
                .collect(),
        )
    };
    let rate = |s: &Sample| s.measured.units as f64 / s.measured.seconds;
    let bulk = load.starts_with("bulk");
    let per_unit = |cpu: f64, s: &Sample| {
        let units = s.measured.units.max(1) as f64;
        if bulk {
            cpu * 1e9 / units
        } else {
            cpu * 1e6 / units
        }
    };
    let cost = |figure: f64| {
        if bulk {
            format!("{figure:.2} s/GB")
        } else {
            format!("{figure:.1} µs")
        }
    };
    let speed = of(way, &rate);
    vec![
        load.to_owned(),
        format!("{way:?}"),
        if bulk {
            format!("{:.2} Gbit/s", speed * 8.0 / 1e9)
        } else {
            format!("{speed:.0}/s")
        },
        format!("{:.2}", speed / of(Way::NoMesh, &rate)),
        format!("{:.0}", of(way, &|s| s.measured.p50_us as f64)),
        format!("{:.0}", of(way, &|s| s.measured.p99_us as f64)),
        format!("{:.0}", of(way, &|s| s.measured.failed as f64)),
        if way == Way::NoMesh {
            "-".into()
        } else {
            cost(of(way, &|s| per_unit(s.ztunnel_cpu, s)))
        },
        if way == Way::L7 {
            cost(of(way, &|s| per_unit(s.waypoint_cpu, s)))
        } else {
            "-".into()
        },
        format!(
            "{:.1} / {:.1}",
            of(way, &|s| s.ztunnel_rss_kib as f64 / 1024.0),
            of(way, &|s| s.waypoint_rss_kib as f64 / 1024.0)
        ),
    ]
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }
}
