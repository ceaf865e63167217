//! Figures that are read when somebody looks, and the text they all end in.

use prometheus::TextEncoder;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use std::collections::BTreeMap;

/// Collects figures for one rendering. A figure that would make the text invalid (a wrong name, the same labels
/// twice, another type than before) is left out and logged: one bad figure must not take the others with it.
#[derive(Debug, Default)]
pub struct Renderer {
    families: BTreeMap<String, MetricFamily>,
}

impl Renderer {
    /// A figure that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add(name, help, labels, MetricType::GAUGE, |metric| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        });
    }

    /// A figure that only goes up, until the host starts again. Its name ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add(name, help, labels, MetricType::COUNTER, |metric| {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        });
    }

    fn add(
        &mut self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        kind: MetricType,
        fill: impl FnOnce(&mut Metric),
    ) {
        let names_ok = is_name(name, true) && labels.iter().all(|(label, _)| is_name(label, false));
        if !names_ok || (kind == MetricType::COUNTER) != name.ends_with("_total") {
            tracing::warn!(metric = name, "a figure with this name cannot be shown");
            return;
        }
        let mut metric = Metric::from_label(labels.iter().map(|(name, value)| pair(name, value)).collect());
        fill(&mut metric);
        let family = self.families.entry(name.to_owned()).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        let known = family.get_metric().iter().any(|other| other.get_label() == metric.get_label());
        if known || family.get_field_type() != kind {
            tracing::warn!(metric = name, ?labels, "a figure was given twice");
            return;
        }
        family.mut_metric().push(metric);
    }

    /// The text, with what was `recorded` along the way. In case of doubt what was recorded counts.
    pub(super) fn text(self, recorded: Vec<MetricFamily>) -> String {
        let mut families = self.families;
        families.extend(recorded.into_iter().map(|family| (family.name().to_owned(), family)));
        let families: Vec<MetricFamily> = families.into_values().collect();
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics cannot be rendered");
            String::new()
        })
    }
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// Names of the text format 0.0.4; only a metric's may have a colon, and we give none.
fn is_name(name: &str, metric: bool) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    first && rest && (metric || !name.starts_with("__"))
}
