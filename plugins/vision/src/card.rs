//! `[parameters]` of a model's card: one section for each task, named after its capability without `vision.`.

use backplane_plugin::prelude::*;
use serde::de::DeserializeOwned;

/// The format this plugin opens.
pub const FORMAT: &str = "vision";

/// What a card says of a task.
pub trait Section: DeserializeOwned + Default {
    /// Whether everything lies within its range: a graph is not asked with what no graph takes.
    ///
    /// # Errors
    /// What does not, by its name within the section.
    fn check(&self) -> Result<(), String>;
}

/// The sections of a card.
pub struct Sections<'a>(&'a ModelSpec);

impl<'a> Sections<'a> {
    /// Those of a model: only for what it is to serve.
    ///
    /// # Errors
    /// When there is a section that no capability of the model reads.
    pub fn of(model: &'a ModelSpec) -> Result<Self> {
        let tasks: Vec<&str> =
            model.capabilities.iter().filter_map(|capability| capability.strip_prefix("vision.")).collect();
        if let Some(unknown) = model.parameters.keys().find(|section| !tasks.contains(&section.as_str())) {
            let message = format!(
                "[parameters.{unknown}] of model `{}` is read by none of its capabilities; there may be sections for `{}`",
                model.name,
                tasks.join("`, `")
            );
            return Err(Error::invalid(message).with_param("parameters"));
        }
        Ok(Self(model))
    }

    /// The section for a task, its defaults where the card says nothing.
    ///
    /// # Errors
    /// When it does not fit; the message names the section.
    pub fn read<T: Section>(&self, task: &str) -> Result<T> {
        let section: T = self.0.section(task)?.unwrap_or_default();
        section.check().map_err(|error| {
            Error::invalid(format!("[parameters.{task}] of model `{}`: {error}", self.0.name))
                .with_param("parameters")
        })?;
        Ok(section)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::within;
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Section {
        top: u32,
    }

    impl super::Section for Section {
        fn check(&self) -> Result<(), String> {
            within("top", self.top, 0..=9)
        }
    }

    fn spec(parameters: Value) -> ModelSpec {
        let Value::Object(parameters) = parameters else { panic!("an object") };
        let capabilities = vec!["vision.classify".to_owned(), "vision.embed".to_owned()];
        ModelSpec { name: "m".to_owned(), capabilities, parameters, ..ModelSpec::default() }
    }

    #[test]
    fn a_task_reads_its_own_section() {
        let model = spec(json!({"classify": {"top": 3}}));
        let sections = Sections::of(&model).unwrap();
        assert_eq!(sections.read::<Section>("classify").unwrap(), Section { top: 3 });
        assert_eq!(sections.read::<Section>("embed").unwrap(), Section::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = Sections::of(&spec(json!({"ocr": {}}))).err().unwrap();
        assert!(
            refused.message.contains("[parameters.ocr]") && refused.message.contains("`classify`, `embed`")
        );
        let model = spec(json!({"classify": {"tpo": 3}}));
        let refused = Sections::of(&model).unwrap().read::<Section>("classify").unwrap_err();
        assert!(
            refused.message.contains("[parameters.classify]") && refused.message.contains("`tpo`"),
            "{refused}"
        );
        let model = spec(json!({"classify": {"top": "three"}}));
        let refused = Sections::of(&model).unwrap().read::<Section>("classify").unwrap_err();
        let says =
            "[parameters.classify] of model `m`: `top` must be a whole number from 0 to 4294967295; got";
        assert!(refused.message.starts_with(says), "{refused}");
        let model = spec(json!({"classify": {"top": 10}}));
        let refused = Sections::of(&model).unwrap().read::<Section>("classify");
        let says = "[parameters.classify] of model `m`: `top` is 10, and lies between 0 and 9";
        assert_eq!(refused.unwrap_err().message, says);
    }
}
