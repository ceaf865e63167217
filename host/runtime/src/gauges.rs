//! Figures that are read when somebody looks: models, slots, queues, engines, the compute pool, the cache. Looking loads
//! nothing.

use crate::compute::Pool;
use crate::metrics::Metrics;
use crate::serve::Parts;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Lets the recorder ask for them when it renders.
pub(crate) fn register(metrics: &Metrics, parts: &Arc<Parts>, pool: &Pool) {
    let (parts, pool) = (Arc::downgrade(parts), pool.clone());
    metrics.on_render(Box::new(move |out| {
        let Some(parts) = parts.upgrade() else { return };
        let shelf = parts.catalog.shelf();
        for entry in shelf.entries() {
            let Some(backend) = entry.backend() else { continue };
            let running = backend.running();
            let name = entry.name();
            let model = [("model", &*name)];
            out.gauge(
                "backplane_model_memory_bytes",
                "Memory of an open model",
                &model,
                entry.memory() as f64,
            );
            out.gauge(
                "backplane_model_busy_slots",
                "Requests inside instances",
                &model,
                f64::from(running.busy),
            );
            out.gauge(
                "backplane_model_slots",
                "Requests that fit inside instances",
                &model,
                f64::from(running.slots),
            );
            out.gauge(
                "backplane_model_queued",
                "Requests waiting for an instance",
                &model,
                f64::from(running.queued),
            );
            out.counter(
                "backplane_model_batches_total",
                "Calls to the plugin",
                &model,
                running.batches as f64,
            );
            out.counter("backplane_model_rows_total", "Requests in those calls", &model, running.rows as f64);
            out.counter(
                "backplane_model_replaced_total",
                "Instances that were replaced",
                &model,
                running.replaced as f64,
            );
            out.counter(
                "backplane_model_late_stats_total",
                "Times the engine did not give its figures at once, and its last ones were shown",
                &model,
                backend.model().late_stats() as f64,
            );
            for (figure, value) in &running.engine {
                let labels = [("model", &*name), ("figure", figure.as_str())];
                out.gauge(
                    "backplane_engine",
                    "Figures of the engine itself, by its own names",
                    &labels,
                    *value,
                );
            }
        }
        let (opened, failed) = shelf.loads();
        out.counter("backplane_model_loads_total", "Models opened", &[("outcome", "opened")], opened as f64);
        out.counter("backplane_model_loads_total", "Models opened", &[("outcome", "failed")], failed as f64);
        shelf.upgrades.render(&shelf.plugins(), out);
        let open = parts.open.load(Ordering::Relaxed);
        out.gauge(
            "backplane_requests_in_flight",
            "Requests that a model has, or that wait for one",
            &[],
            open as f64,
        );
        pool.render(out);
        parts.cache.render(out);
        if let Some(book) = shelf.shared.licences.get() {
            crate::license::render(book, out);
        }
    }));
}
