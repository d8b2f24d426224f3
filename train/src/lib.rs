//! CLIP: tokenizer, image pipeline, loader, model, recipe and checkpoints.
//! Sees no SQL: it is given a `storage::Subset`'s samples.

pub mod backend;
mod checkpoint;
mod config;
mod device;
pub mod doctor;
pub mod embed;
pub mod encode;
mod encoder;
mod error;
mod group;
pub mod image;
mod journal;
pub mod loader;
pub mod model;
pub mod parameters;
mod parts;
mod pickle;
mod plan;
mod recipe;
mod run;
mod saved;
pub mod selftest;
pub mod step;
pub mod text;

pub use backend::{Precision, inner_products};
pub use checkpoint::{CONFIG_FILE, Checkpoint, WEIGHTS_FILE};
pub use config::{ModelConfig, OpenClipConfig, PreprocessConfig, TextConfig, VisionConfig};
pub use device::Device;
pub use encoder::{Encoder, normalize_rows};
pub use error::{Error, Result};
pub use group::{Group, Rendezvous};
pub use parts::hex;
pub use plan::Plan;
pub use recipe::{Recipe, SCALES};
pub use run::{Data, Event, RUN_FILE, Run, SUBSET_FILE, StepReport, train};
pub use text::Tokenizer;
