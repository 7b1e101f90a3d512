use std::collections::HashMap;

use gtmpl_ng::{Context, Template, Value as Data};
use serde_json::{Value, json};

use crate::embedded::{FAMILY, File};
use crate::functions::{FUNCTIONS, data};
use crate::judge;
use crate::manifest::{Manifest, documents, in_helms_order};
use crate::values::{Values, merge};

/// A chart of the family.
#[derive(Debug, Clone)]
pub struct Chart {
    name: &'static str,
    version: String,
    files: &'static [File],
    defaults: Value,
}

/// What an installation is called and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Name; the charts have one each.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// Why a chart cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// There is no such chart.
    #[error("there is no chart {name:?}; the charts are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Values that the chart does not take.
    #[error("chart {chart}: {}", mistakes.join("; "))]
    Values {
        /// The chart.
        chart: &'static str,
        /// Each with the path of the value.
        mistakes: Vec<String>,
    },
    /// A file of the chart is wrong.
    #[error("{chart}/{file}: {message}")]
    File {
        /// The chart.
        chart: &'static str,
        /// Path in the chart.
        file: String,
        /// What is wrong.
        message: String,
    },
}

impl Chart {
    /// All charts, in the order in which they are installed.
    ///
    /// # Errors
    /// When one cannot be read, which a test of this crate excludes.
    pub fn family() -> Result<Vec<Self>, ChartError> {
        FAMILY
            .iter()
            .map(|source| {
                let read = |path: &str| -> Result<Value, ChartError> {
                    let failed = |message| ChartError::File {
                        chart: source.name,
                        file: path.to_owned(),
                        message,
                    };
                    let file = source.files.iter().find(|(name, _)| *name == path);
                    let (_, text) = file.ok_or_else(|| failed("is not there".to_owned()))?;
                    serde_saphyr::from_str(text).map_err(|error| failed(error.to_string()))
                };
                let version = read("Chart.yaml")?["version"].as_str().map(str::to_owned);
                Ok(Self {
                    name: source.name,
                    version: version.unwrap_or_default(),
                    files: source.files,
                    defaults: read("values.yaml")?,
                })
            })
            .collect()
    }

    /// The charts that an installation with `values` consists of: with `waypointsOnly` without the
    /// nodes' parts, which would redirect the same pods as those of the control plane beside it.
    ///
    /// # Errors
    /// As [`Chart::family`].
    pub fn wanted(values: &Values) -> Result<Vec<Self>, ChartError> {
        let mut all = Self::family()?;
        if values.is_set("control-plane", "waypointsOnly") {
            all.retain(|chart| chart.name != "node");
        }
        Ok(all)
    }

    /// One chart.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named(name: &str) -> Result<Self, ChartError> {
        let family = Self::family()?;
        let names: Vec<_> = family.iter().map(|chart| chart.name).collect();
        let known = names.join(", ");
        let found = family.into_iter().find(|chart| chart.name == name);
        found.ok_or_else(|| ChartError::Unknown {
            name: name.to_owned(),
            known,
        })
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its version, which is that of the programs.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// JSON Schema of its values: what [`Chart::render`] takes.
    #[must_use]
    pub fn schema(&self) -> Value {
        let mut schema = judge::schema(&self.defaults, "");
        schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
        schema["title"] = json!(format!("Values of the chart {}", self.name));
        if schema["properties"]["global"].is_null() {
            // Helm hands it to every chart of a family.
            schema["properties"]["global"] = json!({ "type": "object" });
        }
        schema
    }

    /// Its objects, in the order in which Helm applies them. `values` are those of the family: what
    /// stands under `global` and under the chart's name counts.
    ///
    /// # Errors
    /// When a value is not one of the chart's, or of another type; all of them are named.
    pub fn render(&self, release: &Release, values: &Values) -> Result<Vec<Manifest>, ChartError> {
        let given = values.of(self.name, !self.defaults["global"].is_null());
        let mistakes = judge::mistakes(&self.defaults, &given, "");
        if !mistakes.is_empty() {
            return Err(ChartError::Values {
                chart: self.name,
                mistakes,
            });
        }
        let mut all = self.defaults.clone();
        merge(&mut all, &given);
        let context = self.context(release, &all);
        let mut manifests = Vec::new();
        let templates = self
            .files
            .iter()
            .filter(|(path, _)| path.starts_with("templates/") && path.ends_with(".yaml"));
        for (path, text) in templates {
            let failed = |message| ChartError::File {
                chart: self.name,
                file: (*path).to_owned(),
                message,
            };
            let rendered = self.fill(path, text, &context).map_err(failed)?;
            let source = format!("{}/{path}", self.name);
            manifests.extend(documents(&source, &rendered).map_err(failed)?);
        }
        in_helms_order(&mut manifests);
        Ok(manifests)
    }

    fn fill(&self, path: &str, text: &str, context: &Context) -> Result<String, String> {
        let mut template = Template::with_name(path);
        for (name, function) in FUNCTIONS {
            template.add_func(name, function);
        }
        let partials = self.files.iter().filter(|(path, _)| path.ends_with(".tpl"));
        for (name, partial) in partials {
            let added = template.add_template(*name, *partial);
            added.map_err(|error| error.to_string())?;
        }
        // A method with an argument is the one thing of Helm's that the engine does not do.
        let text = text.replace(".Files.Get ", "index .Files ");
        template.parse(text).map_err(|error| error.to_string())?;
        let filled = template
            .render(context)
            .map_err(|error| error.to_string())?;
        if filled.contains("<no value>") {
            return Err("a template asks for a value that values.yaml does not have".to_owned());
        }
        Ok(filled)
    }

    fn context(&self, release: &Release, values: &Value) -> Context {
        let files = self
            .files
            .iter()
            .filter(|(path, _)| path.starts_with("files/"));
        let files: HashMap<String, Data> = files
            .map(|(path, text)| ((*path).to_owned(), Data::from(*text)))
            .collect();
        let mut all = HashMap::from([("Files".to_owned(), Data::Map(files))]);
        for (key, value) in [
            ("Values", values.clone()),
            (
                "Release",
                json!({ "Name": release.name, "Namespace": release.namespace }),
            ),
            (
                "Chart",
                json!({ "Name": self.name, "Version": self.version, "AppVersion": self.version }),
            ),
        ] {
            all.insert(key.to_owned(), data(&value));
        }
        Context::from(Data::Map(all))
    }
}
