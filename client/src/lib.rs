//! What a controller speaks to `mortard` with, the storage agent of one host.
//!
//! It adds to the generated clients of `mortar.agent.v1` what every caller needs and nothing that decides: the connection, by the
//! Unix socket or by TLS with certificates on both sides; deadlines; another try where the contract says that it is safe; typed
//! errors. `docs/controllers.md` says how a controller is written with it, `client/examples/controller.rs` is one.
//!
//! ```no_run
//! use mortar_client::{Client, Code, v1};
//!
//! # async fn example() -> Result<(), mortar_client::Error> {
//! let client = Client::builder().connect().await?;
//! // The id is ours: should the agent restart in the middle, the same call is made again and gets the same device.
//! let request = v1::AttachRequest {
//!     id: "web1-data".into(),
//!     volume: Some(v1::attach_request::Volume::Locator("lvm:vg0/data".into())),
//!     ..Default::default()
//! };
//! match client.ask(request).await {
//!     Ok(reply) => println!("{}", reply.attachment.unwrap_or_default().stable_path),
//!     Err(error) if error.code() == Code::NotFound => println!("no such volume: {error}"),
//!     Err(error) if error.may_be_tried_again() => println!("in the next round, then: {error}"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The agent of another machine:
//!
//! ```no_run
//! # async fn example() -> Result<(), mortar_client::Error> {
//! use mortar_client::{Client, Tls};
//!
//! let tls = Tls::builder().ca("agents-ca.pem").certificate("certificate.pem").key("key.pem").build()?;
//! let client = Client::builder().endpoint("https://hv1.example.org".parse()?, tls).connect().await?;
//! # Ok(())
//! # }
//! ```

mod ask;
mod call;
mod client;
mod endpoint;
mod error;
mod tls;
mod watch;
mod way;

pub use ask::Ask;
pub use client::{Builder, Client};
pub use endpoint::Endpoint;
pub use error::{Error, Kind, code_name};
pub use proto::v1;
pub use tls::{Tls, TlsBuilder};
pub use tonic::{Code, Request, Status};
pub use watch::Watch;
