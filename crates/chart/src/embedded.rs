//! The files of the charts.

/// A file of a chart: its path in the chart, and its text.
pub(crate) type File = (&'static str, &'static str);

/// A chart's name and files.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: &'static str,
    pub(crate) files: &'static [File],
}

macro_rules! chart {
    ($name:literal, $($file:literal),* $(,)?) => {
        Source {
            name: $name,
            files: &[$((
                $file,
                include_str!(concat!("../../../manifests/charts/", $name, "/", $file)),
            )),*],
        }
    };
}

/// The family, in the order in which it is installed.
pub(crate) const FAMILY: [Source; 3] = [
    chart!(
        "crds",
        "Chart.yaml",
        "values.yaml",
        "values.schema.json",
        "templates/definitions.yaml",
        "files/gateway-api.yaml",
        "files/isobar.yaml",
        "files/istio.yaml",
    ),
    chart!(
        "control-plane",
        "Chart.yaml",
        "values.yaml",
        "values.schema.json",
        "templates/_names.tpl",
        "templates/clusterrole.yaml",
        "templates/clusterrolebinding.yaml",
        "templates/deployment.yaml",
        "templates/gatewayclass.yaml",
        "templates/guard.txt",
        "templates/horizontalpodautoscaler.yaml",
        "templates/networkpolicy.yaml",
        "templates/poddisruptionbudget.yaml",
        "templates/role.yaml",
        "templates/rolebinding.yaml",
        "templates/service.yaml",
        "templates/serviceaccount.yaml",
        "templates/validatingwebhookconfiguration.yaml",
    ),
    chart!(
        "node",
        "Chart.yaml",
        "values.yaml",
        "values.schema.json",
        "templates/_names.tpl",
        "templates/clusterrole.yaml",
        "templates/clusterrolebinding.yaml",
        "templates/isobar-cni.yaml",
        "templates/role.yaml",
        "templates/rolebinding.yaml",
        "templates/serviceaccount.yaml",
        "templates/ztunnel.yaml",
    ),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn below(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                below(&entry.path(), &format!("{name}/"), found);
            } else {
                found.insert(name);
            }
        }
    }

    #[test]
    fn every_file_of_a_chart_is_embedded() {
        let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/charts");
        let folders = std::fs::read_dir(&charts).unwrap().count();
        assert_eq!(folders, FAMILY.len());
        for source in &FAMILY {
            let mut found = BTreeSet::new();
            below(&charts.join(source.name), "", &mut found);
            let embedded: BTreeSet<String> = source
                .files
                .iter()
                .map(|(path, _)| (*path).to_owned())
                .collect();
            assert_eq!(found, embedded, "{}", source.name);
        }
    }
}
