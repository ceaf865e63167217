//! Names in a configuration that nothing here has: a model that is not installed, a plugin that is not there.
//!
//! They are no mistakes of form, and what they name may come later, so they are told and not refused. Silence would let a
//! misspelt line of `plugins.isolation` leave a plugin unconfined.

use super::Config;
use super::layers::join;

/// From here on a name is taken for another one, misspelt.
const ALIKE: f64 = 0.85;

/// A line for each of them. `models` are all that are listed, `plugins` the ids of all that were found.
pub(crate) fn told(config: &Config, models: &[&str], plugins: &[&str]) -> Vec<String> {
    let (of_models, of_plugins) = (&config.models, &config.plugins);
    let others = of_models.aliases.keys().chain(of_models.routes.keys());
    let names: Vec<&str> = models.iter().copied().chain(others.map(String::as_str)).collect();
    let mut said = Vec::new();
    let mut model =
        |path: &[&str], name: &str, known: &[&str]| said.extend(unknown("model", path, name, known));
    for (alias, target) in &of_models.aliases {
        model(&["models", "aliases", alias], target, &names);
    }
    for (route, asked) in &of_models.routes {
        asked.models.iter().for_each(|name| model(&["models", "routes", route, "models"], name, &names));
    }
    for name in of_models.overrides.keys() {
        // What differs for a model is looked up by its own name.
        model(&["models", "override", name], name, models);
    }
    let mut plugin = |path: &[&str], id: &str| said.extend(unknown("plugin", path, id, plugins));
    of_plugins.isolation.keys().for_each(|id| plugin(&["plugins", "isolation", id], id));
    of_plugins.workers.keys().for_each(|id| plugin(&["plugins", "workers", id], id));
    of_plugins.settings.keys().for_each(|id| plugin(&["plugins", "settings", id], id));
    of_plugins.disabled.iter().for_each(|id| plugin(&["plugins", "disabled"], id));
    said
}

fn unknown(what: &str, path: &[&str], name: &str, known: &[&str]) -> Option<String> {
    if name == "*" || known.contains(&name) {
        return None;
    }
    let path = join(&path.iter().map(|&part| part.to_owned()).collect::<Vec<_>>());
    let likeness = |other: &&&str| strsim::jaro_winkler(name, other);
    let near = known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .filter(|near| ALIKE <= likeness(near));
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Some(format!("`{path}`: there is no {what} `{name}` here{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let options = crate::config::LoadOptions { file: Some(file.path().into()), ..Default::default() };
        let config = Config::load(options).unwrap();
        told(&config, &["smollm2", "minilm"], &["dev.backplane.echo"])
    }

    #[test]
    fn names_that_nothing_has_are_told_with_the_nearest() {
        let said = said(
            "[plugins]\ndisabled = ['com.example.gone']\n[plugins.isolation]\n'dev.backplane.ecko' = 'worker'\n'*' = 'auto'\n\
             [plugins.settings.'dev.backplane.echo']\nx = 1\n[models.aliases]\n'*' = 'smollm2'\na = 'minilm'\nc = 'nosuch'\n\
             [models.override.smolm2]\npin = true\n[models.routes.r]\nmodels = ['smollm2', 'a', 'minilmm']\nescalate_below = 0.5\n",
        );
        let expected = [
            "`models.aliases.c`: there is no model `nosuch` here",
            "`models.routes.r.models`: there is no model `minilmm` here; did you mean `minilm`?",
            "`models.override.smolm2`: there is no model `smolm2` here; did you mean `smollm2`?",
            "`plugins.isolation.\"dev.backplane.ecko\"`: there is no plugin `dev.backplane.ecko` here; did you mean `dev.backplane.echo`?",
            "`plugins.disabled`: there is no plugin `com.example.gone` here",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_configuration_that_says_nothing_has_none() {
        assert!(said("").is_empty());
    }
}
