//! Connections to endpoints: how one is made, and which are kept for the next request.

mod answer;
mod dial;
mod http1;
mod http2;
mod origin;
mod pool;
mod preface;

pub use answer::{Answer, AnswerError};
pub use dial::{Dial, DialFailure, HboneDialer, PlainDialer};
pub use http1::Error as Http1Error;
pub use origin::{Origin, Origins, Tls};
pub(crate) use pool::chain;
pub use pool::{How, InUse, Pool, SendError, Sent, Version};
pub use preface::Preface;
