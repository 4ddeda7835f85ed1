//! Compiles the proto with protox, so that no protoc has to be installed.

use prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

/// Messages with a secret in them: their `Debug` is written by hand.
const SECRET: [&str; 7] = [
    ".mortar.agent.v1.AttachRequest",
    ".mortar.agent.v1.Cephx",
    ".mortar.agent.v1.Chap",
    ".mortar.agent.v1.DetachRequest",
    ".mortar.agent.v1.ExportResponse",
    ".mortar.agent.v1.RescueRequest",
    ".mortar.agent.v1.RescueResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    let source = "mortar/agent/v1/agent.proto";
    println!("cargo::rerun-if-changed={source}");
    let descriptors = protox::compile([source], ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    #[expect(clippy::disallowed_methods, reason = "a build script writes to OUT_DIR")]
    fs::write(out.join("mortar.agent.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
