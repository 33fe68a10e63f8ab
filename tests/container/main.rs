//! The image in real containers: served with the privileges that docs/containers.md names and no more, used by other
//! containers, killed, started again, split and merged from outside, stopped. `tests/container/run` builds the image and
//! runs these.

#[path = "documents.rs"]
mod documents;
#[path = "engine.rs"]
mod engine;
#[path = "image.rs"]
mod image;
#[path = "life.rs"]
mod life;
#[path = "privileges.rs"]
mod privileges;
#[path = "../integration/rig/mod.rs"]
mod rig;
