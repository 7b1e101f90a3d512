//! Images become local commands.

use std::path::Path;

use k8s_openapi::api::core::v1::Container;

/// The program a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) argv: Vec<String>,
    /// True for our waypoint, which gets the mesh's environment.
    pub(crate) waypoint: bool,
}

/// Why a container has no program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(
        "image {image:?} is not known to the lab: annotate the pod with \
         `lab.isobar.dev/command: PROGRAM ARGS` to run a local program in its place, or use an image \
         it knows: honester/hello-server, honester/httpbin, nginx, istio/examples-bookinfo-*, \
         istio/tcp-echo-server, curlimages/curl, busybox, alpine"
    )]
    Unknown { image: String },
    #[error("container {container} names no image")]
    NoImage { container: String },
    #[error("{program} is not in {folder}; build it, or name the folder that has it")]
    NotBuilt { program: String, folder: String },
}

/// What an image stands for.
#[derive(Debug, Clone, Copy)]
enum Stand {
    /// Our sample program with these arguments; `{tag}` is the image's tag.
    Sample(&'static [&'static str]),
    /// A box of tools: the command counts, and without one the container idles.
    Tools,
    /// Our waypoint.
    Waypoint,
}

const IMAGES: &[(&str, Stand)] = &[
    (
        "honester/hello-server",
        Stand::Sample(&["hello-server", "--version", "{tag}"]),
    ),
    ("honester/httpbin", Stand::Sample(&["httpbin"])),
    ("kennethreitz/httpbin", Stand::Sample(&["httpbin"])),
    (
        "mccutchen/go-httpbin",
        Stand::Sample(&["httpbin", "--port", "8080"]),
    ),
    ("nginx", Stand::Sample(&["nginx"])),
    (
        "istio/examples-bookinfo-productpage-v1",
        Stand::Sample(&["productpage"]),
    ),
    (
        "istio/examples-bookinfo-details-v1",
        Stand::Sample(&["details"]),
    ),
    (
        "istio/examples-bookinfo-reviews-v1",
        Stand::Sample(&["reviews", "--version", "v1"]),
    ),
    (
        "istio/examples-bookinfo-reviews-v2",
        Stand::Sample(&["reviews", "--version", "v2"]),
    ),
    (
        "istio/examples-bookinfo-reviews-v3",
        Stand::Sample(&["reviews", "--version", "v3"]),
    ),
    (
        "istio/examples-bookinfo-ratings-v1",
        Stand::Sample(&["ratings"]),
    ),
    ("istio/tcp-echo-server", Stand::Sample(&["tcp-echo"])),
    ("curlimages/curl", Stand::Tools),
    ("governmentpaas/curl-ssl", Stand::Tools),
    ("busybox", Stand::Tools),
    ("alpine", Stand::Tools),
    ("debian", Stand::Tools),
    ("ubuntu", Stand::Tools),
    ("nicolaka/netshoot", Stand::Tools),
    ("isobar/samples", Stand::Sample(&[])),
    ("isobar/waypoint", Stand::Waypoint),
];

/// The program of a container. `annotation` is the pod's `lab.isobar.dev/command`; `expand`
/// replaces `$(NAME)` in commands and arguments.
pub(crate) fn program(
    container: &Container,
    annotation: Option<&str>,
    binaries: &Path,
    expand: impl Fn(&str) -> String,
) -> Result<Program, ImageError> {
    let plain = |argv| Program {
        argv,
        waypoint: false,
    };
    if let Some(command) = annotation {
        let shell = ["/bin/sh", "-c", command];
        return Ok(plain(shell.map(str::to_owned).to_vec()));
    }
    let image = container
        .image
        .as_deref()
        .filter(|image| !image.is_empty())
        .ok_or_else(|| ImageError::NoImage {
            container: container.name.clone(),
        })?;
    let (repository, tag) = parse(image);
    let stand = IMAGES
        .iter()
        .find(|(name, _)| *name == repository)
        .map(|(_, stand)| *stand)
        .ok_or_else(|| ImageError::Unknown {
            image: image.to_owned(),
        })?;
    let list = |texts: &Option<Vec<String>>| {
        texts
            .iter()
            .flatten()
            .map(|t| expand(t))
            .collect::<Vec<_>>()
    };
    let (command, args) = (list(&container.command), list(&container.args));
    if !command.is_empty() {
        return Ok(plain([command, args].concat()));
    }
    let ours = |name: &str| find(binaries, name);
    match stand {
        Stand::Sample(entry) => {
            let entry = entry.iter().map(|word| word.replace("{tag}", tag));
            let argv = std::iter::once(ours("isobar-samples")?)
                .chain(entry)
                .chain(args);
            Ok(plain(argv.collect()))
        }
        Stand::Tools if args.is_empty() => {
            Ok(plain(vec![ours("isobar-samples")?, "client".into()]))
        }
        Stand::Tools => Ok(plain(args)),
        Stand::Waypoint => Ok(Program {
            argv: [vec![ours("waypoint")?], args].concat(),
            waypoint: true,
        }),
    }
}

/// True if what stands for this container is a waypoint.
pub(crate) fn is_waypoint(container: &Container, annotation: Option<&str>) -> bool {
    let image = container.image.as_deref().unwrap_or_default();
    let (repository, _) = parse(image);
    let stands = IMAGES
        .iter()
        .any(|(name, stand)| *name == repository && matches!(stand, Stand::Waypoint));
    stands && annotation.is_none() && container.command.iter().flatten().next().is_none()
}

/// Path of one of our programs.
pub(crate) fn find(binaries: &Path, name: &str) -> Result<String, ImageError> {
    let path = binaries.join(name);
    if path.is_file() {
        Ok(path.to_string_lossy().into_owned())
    } else {
        Err(ImageError::NotBuilt {
            program: name.to_owned(),
            folder: binaries.display().to_string(),
        })
    }
}

/// Repository without Docker Hub's prefixes, and tag (`latest` when there is none).
fn parse(image: &str) -> (&str, &str) {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let (repository, tag) = match name.rsplit_once(':') {
        // A colon before a slash belongs to the registry's port.
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "latest"),
    };
    let repository = ["docker.io/", "index.docker.io/", "registry-1.docker.io/"]
        .iter()
        .find_map(|prefix| repository.strip_prefix(prefix))
        .unwrap_or(repository);
    (
        repository.strip_prefix("library/").unwrap_or(repository),
        tag,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with_programs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["isobar-samples", "waypoint"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        dir
    }

    fn argv(
        container: serde_json::Value,
        annotation: Option<&str>,
    ) -> Result<Vec<String>, ImageError> {
        let dir = with_programs();
        let container: Container = serde_json::from_value(container).unwrap();
        let program = program(&container, annotation, dir.path(), |text| {
            text.replace("$(X)", "x")
        })?;
        let folder = format!("{}/", dir.path().display());
        Ok(program
            .argv
            .iter()
            .map(|arg| arg.replace(&folder, ""))
            .collect())
    }

    #[test]
    fn names_lose_registry_and_gain_a_tag() {
        for (image, repository, tag) in [
            ("nginx:alpine", "nginx", "alpine"),
            ("docker.io/library/nginx", "nginx", "latest"),
            (
                "docker.io/honester/hello-server:v1",
                "honester/hello-server",
                "v1",
            ),
            ("host:5000/a/b", "host:5000/a/b", "latest"),
            ("host:5000/a/b:c@sha256:00", "host:5000/a/b", "c"),
        ] {
            assert_eq!(parse(image), (repository, tag), "{image}");
        }
    }

    #[test]
    fn study_notes_run_unmodified() {
        let run = |value| argv(value, None).unwrap().join(" ");
        assert_eq!(
            run(json!({"name": "c", "image": "docker.io/honester/hello-server:v2"})),
            "isobar-samples hello-server --version v2"
        );
        assert_eq!(
            run(
                json!({"name": "c", "image": "docker.io/istio/examples-bookinfo-reviews-v3:1.20.3"})
            ),
            "isobar-samples reviews --version v3"
        );
        assert_eq!(
            run(
                json!({"name": "c", "image": "curlimages/curl", "command": ["/bin/sleep", "infinity"]})
            ),
            "/bin/sleep infinity"
        );
        assert_eq!(
            run(json!({"name": "c", "image": "curlimages/curl"})),
            "isobar-samples client"
        );
        assert_eq!(
            run(json!({"name": "c", "image": "isobar/samples", "args": ["tcp-echo", "$(X)"]})),
            "isobar-samples tcp-echo x"
        );
    }

    #[test]
    fn a_stranger_needs_an_annotation() {
        let stranger = json!({"name": "c", "image": "acme/shop:1"});
        let text = argv(stranger.clone(), None).unwrap_err().to_string();
        assert!(
            text.contains("acme/shop:1") && text.contains("lab.isobar.dev/command"),
            "{text}"
        );
        assert_eq!(
            argv(stranger, Some("python3 -m http.server")).unwrap(),
            ["/bin/sh", "-c", "python3 -m http.server"]
        );
    }
}
