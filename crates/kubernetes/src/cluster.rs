use std::fmt;
use std::path::Path;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::wire::{Connector, Settings};

/// An API server and who we are there. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    address: String,
}

/// Why an API server cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor the files of a pod say where it is.
    #[error("no API server: KUBECONFIG names none, and this is no pod: {0}")]
    Nowhere(String),
    /// The kubeconfig cannot be used.
    #[error("{file}: {error}")]
    Kubeconfig {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: String,
    },
    /// It asks for something that is not done here.
    #[error("the API server's configuration asks for {0}")]
    Unsupported(&'static str),
}

impl Cluster {
    /// The API server that `KUBECONFIG` or `~/.kube/config` names, or else that of the pod this
    /// process runs in. Nothing is sent yet.
    ///
    /// # Errors
    /// When there is none, or its configuration cannot be used.
    pub async fn infer() -> Result<Self, ConnectError> {
        let config = Config::infer()
            .await
            .map_err(|error| ConnectError::Nowhere(error.to_string()))?;
        Self::of(&config)
    }

    /// The API server of the current context of a kubeconfig file.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub async fn from_kubeconfig(file: &Path) -> Result<Self, ConnectError> {
        Self::of_context(Some(file), None).await
    }

    /// The API server of a context, or of the current one, of a kubeconfig: of `file`, or of what
    /// `KUBECONFIG` names, or of `~/.kube/config`.
    ///
    /// # Errors
    /// When there is no such file or context, or it cannot be used.
    pub async fn of_context(
        file: Option<&Path>,
        context: Option<&str>,
    ) -> Result<Self, ConnectError> {
        let wrong = |error: kube::config::KubeconfigError| ConnectError::Kubeconfig {
            file: file.map_or_else(
                || "kubeconfig".to_owned(),
                |file| file.display().to_string(),
            ),
            error: error.to_string(),
        };
        let read = match file {
            Some(file) => Kubeconfig::read_from(file),
            None => Kubeconfig::read(),
        };
        let options = KubeConfigOptions {
            context: context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(read.map_err(wrong)?, &options)
            .await
            .map_err(wrong)?;
        Self::of(&config)
    }

    fn of(config: &Config) -> Result<Self, ConnectError> {
        if config.accept_invalid_certs {
            return Err(ConnectError::Unsupported(
                "insecure-skip-tls-verify, which is never done: name the authority instead",
            ));
        }
        if config.proxy_url.is_some() {
            return Err(ConnectError::Unsupported("a proxy, which is not supported"));
        }
        let unusable = |error: kube::Error| ConnectError::Nowhere(error.to_string());
        let connector = Connector::new(Settings {
            roots: config.root_cert.clone().unwrap_or_default(),
            roots_file: config.root_cert_file.clone(),
            server_name: config.tls_server_name.clone(),
            identity: identity(config)?,
        });
        let http: HttpClient<_, kube::client::Body> =
            HttpClient::builder(TokioExecutor::new()).build(connector);
        // The layer that adds tokens has failures of its own: one type for all.
        let http = tower::util::MapErr::new(http, tower::BoxError::from);
        let builder = ClientBuilder::new(http, &*config.default_namespace)
            .with_layer(&config.extra_headers_layer().map_err(unusable)?);
        // The layer that adds the token changes the type of the stack, so it is built twice.
        let client = match config.auth_layer().map_err(unusable)? {
            Some(auth) => builder
                .with_layer(&auth)
                .with_layer(&config.base_uri_layer())
                .build(),
            None => builder.with_layer(&config.base_uri_layer()).build(),
        };
        Ok(Self {
            client,
            address: config.cluster_url.to_string(),
        })
    }

    /// For requests.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Its address, for people.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Chain and key that the configuration says to show, both PEM.
fn identity(config: &Config) -> Result<Option<(String, String)>, ConnectError> {
    let auth = &config.auth_info;
    let wrong = |error: String| ConnectError::Kubeconfig {
        file: "the user's certificate".to_owned(),
        error,
    };
    let text = |file: &Option<String>,
                data: Option<&str>|
     -> Result<Option<String>, ConnectError> {
        if let Some(data) = data {
            let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data)
                .map_err(|error| wrong(error.to_string()))?;
            let text = String::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
            return Ok(Some(text));
        }
        file.as_ref()
            .map(|file| std::fs::read_to_string(file).map_err(|e| wrong(format!("{file}: {e}"))))
            .transpose()
    };
    let chain = text(
        &auth.client_certificate,
        auth.client_certificate_data.as_deref(),
    )?;
    let key_data = auth.client_key_data.as_ref();
    let key = text(
        &auth.client_key,
        key_data.map(secrecy::ExposeSecret::expose_secret),
    )?;
    Ok(chain.zip(key))
}
