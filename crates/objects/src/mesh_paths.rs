//! What a MeshConfig says of paths: `pathNormalization`.

use isobar_route::path::Normalization;
use serde::Deserialize;

/// How far paths are normalised before policies and routes of waypoints and gateways look at them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathNormalization {
    /// How far; nothing said is BASE.
    pub normalization: PathForm,
}

/// A word for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PathForm(pub Normalization);

impl TryFrom<String> for PathForm {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        Ok(Self(match &*word {
            "NONE" => Normalization::None,
            "DEFAULT" | "BASE" => Normalization::Base,
            "MERGE_SLASHES" => Normalization::MergeSlashes,
            "DECODE_AND_MERGE_SLASHES" => Normalization::DecodeAndMergeSlashes,
            _ => {
                return Err(format!(
                    "pathNormalization.normalization: {word:?} is none of NONE, BASE, MERGE_SLASHES, \
                     DECODE_AND_MERGE_SLASHES"
                ));
            }
        }))
    }
}
