//! What a stage begins with.

use std::collections::BTreeMap;

use serde_json::Value;

use super::dockerfile::{Dockerfile, Instruction, Step};
use super::error::StepError;
use super::stage::{Build, State};
use crate::image::{Draft, ImageError, ImageName, Reference, StoredImage, View, archive, registry};

/// Where an image keeps instructions for those that begin with it.
pub(super) const TRIGGERS: &str = "OnBuild";

impl Build<'_> {
    /// What a stage begins with.
    pub(super) fn begin(&self, number: usize, done: &BTreeMap<usize, State>) -> Result<State, StepError> {
        let stage = &self.file.stages[number];
        if let Instruction::From { platform: Some(platform) } = &stage.from.instruction {
            let platform = self.arguments.expand(self.file.escape, platform).map_err(StepError::Wrong)?;
            if !matches!(&*platform, "linux/amd64" | "linux/amd64/v1" | "linux/x86_64") {
                return Err(StepError::Wrong(format!("--platform={platform}: amphi builds for linux/amd64 only")));
            }
        }
        let image = self.arguments.expand(self.file.escape, &stage.image).map_err(StepError::Wrong)?;
        if let Some(state) = self.file.stage_before(&image, number).and_then(|stage| done.get(&stage)) {
            return Ok(State { own_command: false, ..state.clone() });
        }
        match &*image {
            "" => Err(StepError::Wrong(format!("{:?} comes to nothing: is an ARG before FROM missing?", stage.image))),
            "scratch" => Ok(State::new(Draft::scratch(), View::default())),
            name => {
                let parent = self.image(name)?;
                let view = self.view(&parent)?;
                Ok(State::new(Draft::on(&parent), view))
            }
        }
    }

    /// An image that is not of this Dockerfile.
    pub(super) fn image(&self, name: &str) -> Result<StoredImage, StepError> {
        match name.parse::<Reference>().map_err(ImageError::from)? {
            Reference::Named(name) => self.named(&name),
            Reference::Archive(place) => Ok(archive::load_unnamed(&place, self.store).map_err(ImageError::from)?),
            _ => Err(StepError::Wrong(format!(
                "{name} has no layers to build on: name an image of a registry or of the store, oci:PATH, docker-archive:FILE, or scratch"
            ))),
        }
    }

    fn named(&self, name: &ImageName) -> Result<StoredImage, StepError> {
        if let Some(manifest) = self.store.find(name)? {
            return Ok(self.store.image(&manifest)?);
        }
        let failed = |error| ImageError::Registry(Box::new(error));
        let client = registry::Client::new(name, &self.options.registry).map_err(failed)?;
        Ok(client.pull(self.store, self.progress).map_err(failed)?)
    }

    pub(super) fn view(&self, image: &StoredImage) -> Result<View, StepError> {
        let layers = self.store.layers(image)?;
        Ok(View::new(layers.files.into_iter().map(|layer| layer.file).collect()))
    }
}

/// Takes out the instructions that an image has kept for this one.
pub(super) fn take_triggers(draft: &mut Draft) -> Result<Vec<Step>, StepError> {
    let Some(Value::Array(kept)) = draft.execution().other.remove(TRIGGERS) else { return Ok(Vec::new()) };
    let parse = |text: &Value| {
        let text = text.as_str().unwrap_or_default();
        Dockerfile::parse_trigger(text).map_err(|error| StepError::Wrong(error.problem))
    };
    kept.iter().map(parse).collect()
}
