//! Pictures: reads them, prepares them for graphs that another plugin runs, and makes sense of what comes back.
//!
//! - [`picture`]: from the bytes of a request to pixels, within limits; resizing; pixels to the numbers of a tensor.
//! - [`graph`]: the graphs of a model, run through the host by whatever serves `tensor.infer`.
//! - [`card`]: what a model's card may say.
//! - [`fit`]: a picture in the size that a graph takes; [`rows`]: what comes back, picture by picture.
//! - [`task`]: what serves one capability of a model: [`ocr`], [`detect`], [`classify`], [`faces`], [`embed`].
//! - [`draw`]: boxes and labels on a picture.
//!
//! No engine is linked here. A model of the format `vision` lists its graphs under `[graphs]` of its card; each is a model
//! of its own to the host, which chooses the plugin that opens it.

mod card;
mod classify;
mod detect;
mod draw;
mod embed;
mod faces;
mod fit;
mod graph;
mod ocr;
mod picture;
mod range;
mod rows;
mod task;

use backplane_plugin::payload;
use backplane_plugin::prelude::*;
use picture::{Limits, Memory};
use std::sync::Arc;
use task::{Job, Task};

/// Requests of a model that may be under way at once. Most of their time goes to the graphs, which run elsewhere.
const MAX_INFLIGHT: u32 = 8;

/// Bytes of a model without any picture.
const OWN: u64 = 16 << 20;

/// The library.
struct VisionPlugin {
    limits: Limits,
}

impl Plugin for VisionPlugin {
    const ID: &'static str = "dev.backplane.vision";

    fn init(_host: Host, config: &Value) -> Result<Self> {
        let limits: Limits = backplane_plugin::settings(Self::ID, config)?;
        limits
            .possible()
            .map_err(|what| Error::invalid(format!("[plugins.settings.\"{}\"]: {what}", Self::ID)))?;
        Ok(Self { limits })
    }

    fn bid(&self, query: &Query<'_>) -> Bid {
        let format = query.model().unwrap_or_default().format;
        if query.format != card::FORMAT && format != card::FORMAT {
            return Bid::no(BidReason::Format, format!("only the format `{}` can be opened", card::FORMAT));
        }
        // What its pictures may take; the graphs are models with memory of their own.
        Bid { host_bytes: OWN + self.limits.max_memory, ..Bid::default() }
    }

    fn open(&self, model: &ModelSpec) -> Result<Box<dyn Model>> {
        let sections = card::Sections::of(model)?;
        let mut tasks: Vec<(String, Box<dyn Task>)> = Vec::new();
        for capability in &model.capabilities {
            let task: Box<dyn Task> = match capability.as_str() {
                payload::ocr::CAPABILITY => Box::new(ocr::Ocr::of(model, &sections)?),
                payload::vision_detect::CAPABILITY => Box::new(detect::Detect::of(model, &sections)?),
                payload::vision_classify::CAPABILITY => Box::new(classify::Classify::of(model, &sections)?),
                payload::vision_faces::CAPABILITY => Box::new(faces::Faces::of(model, &sections)?),
                payload::vision_embed::CAPABILITY => Box::new(embed::Embed::of(model, &sections)?),
                other => {
                    let message = format!(
                        "model `{}` is to serve `{other}`, which the vision plugin does not",
                        model.name
                    );
                    return Err(Error::new(Code::Unimplemented, message).with_param("capabilities"));
                }
            };
            tasks.push((capability.clone(), task));
        }
        let memory = Memory::new(self.limits.max_memory);
        Ok(Box::new(VisionModel { tasks: tasks.into(), limits: self.limits, memory }))
    }
}

/// An opened model.
struct VisionModel {
    /// By capability.
    tasks: Arc<[(String, Box<dyn Task>)]>,
    limits: Limits,
    memory: Arc<Memory>,
}

impl Model for VisionModel {
    fn execution(&self) -> Execution {
        Execution::Concurrent { max_inflight: MAX_INFLIGHT, max_batch: 1 }
    }

    fn describe(&self) -> Description {
        Description { platform: Some(card::FORMAT.to_owned()), ..Description::default() }
    }

    fn instance(&self, seat: &Seat) -> Result<Box<dyn Instance>> {
        let (tasks, limits, memory, seat) = (self.tasks.clone(), self.limits, self.memory.clone(), *seat);
        Ok(each(move |request| {
            let Some((_, task)) = tasks.iter().find(|(capability, _)| capability == request.capability())
            else {
                let message = format!("the model does not serve `{}`", request.capability());
                return Err(Error::new(Code::Unimplemented, message));
            };
            task.serve(&Job::new(request, seat, limits, &memory))
        }))
    }
}

export_plugin!(VisionPlugin, include_str!("../plugin.toml"));
