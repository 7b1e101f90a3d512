use isobar_proto::envoy::service::discovery::v3::Resource;
use isobar_types::Str;
use prost::Message;

/// Takes the resources of one type. The client calls it from one task only, one response at a time.
pub trait ResourceHandler: Send {
    /// Type URL to subscribe to, for all resources of the type.
    fn type_url(&self) -> &'static str;

    /// True for a type that a control plane may not know, and then does not answer: nobody waits for
    /// its first response.
    fn is_optional(&self) -> bool {
        false
    }

    /// A stream has been opened: what comes next begins with everything not told to be held.
    fn stream_opened(&mut self) {}

    /// The name of a resource in force, if the handler stores it itself: then it is stored once.
    fn stored_name(&self, name: &str) -> Option<Str> {
        let _ = name;
        None
    }

    /// Applies one response: first `updates`, then removes `removed`, then publishes the result at
    /// once. A resource that cannot be used leaves its previous version in force and is returned;
    /// the others apply.
    fn apply(&mut self, updates: &[Resource], removed: &[String]) -> Vec<Rejected>;
}

/// A resource that could not be used, and why; the server is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Resource name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Decodes a resource's content as the message type its handler expects.
///
/// # Errors
/// With the reason to reject, when it is empty or malformed.
pub fn decode<M: Message + Default>(resource: &Resource) -> Result<M, String> {
    let any = resource
        .resource
        .as_ref()
        .ok_or_else(|| "the resource is empty".to_owned())?;
    M::decode(&any.value[..]).map_err(|error| format!("the resource is malformed: {error}"))
}
