//! The search against a naive one.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn rows(dtype: Component, values: &[f32]) -> Rows {
    match dtype {
        Component::F32 => Rows::F32(values.to_vec()),
        Component::F16 => Rows::F16(values.iter().map(|value| f16::from_f32(*value)).collect()),
        Component::I8 => Rows::I8(values.iter().map(|value| *value as i8).collect()),
    }
}

fn batch(dtype: Component, first: usize, values: &[Vec<f32>]) -> Batch {
    Batch {
        ids: (first..first + values.len()).map(|n| format!("v{n}").into()).collect(),
        rows: rows(dtype, &values.concat()),
        metadata: (first..first + values.len())
            .map(|n| json!({"even": n % 2 == 0, "n": n}).as_object().cloned().map(Box::new))
            .collect(),
    }
}

fn never() -> bool {
    false
}

fn find(
    collection: &Collection,
    query: &[f32],
    k: usize,
    filter: Option<&Filter>,
    threads: usize,
) -> Vec<Hit> {
    let wanted = Wanted { k, filter, include_metadata: false };
    let query = collection.query(query.to_vec());
    collection.search(&[query], &wanted, threads, &never).remove(0)
}

/// All of `known`, best first, by the definition and in 64 bits.
fn naive(metric: Metric, known: &[(String, Vec<f32>)], query: &[f32]) -> Vec<(String, f64)> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let mut all: Vec<(String, f64)> = known
        .iter()
        .map(|(id, row)| {
            let score = match metric {
                Metric::Dot => dot(row, query),
                Metric::Cosine => dot(row, query) / (dot(row, row) * dot(query, query)).sqrt(),
                Metric::L2 => {
                    let difference: Vec<f32> = row.iter().zip(query).map(|(a, b)| a - b).collect();
                    dot(&difference, &difference).sqrt()
                }
            };
            (id.clone(), score)
        })
        .collect();
    let sign = if metric == Metric::L2 { 1.0 } else { -1.0 };
    // 0 and -0 are equal.
    all.sort_by(|a, b| (sign * a.1 + 0.0).total_cmp(&(sign * b.1 + 0.0)).then_with(|| a.0.cmp(&b.0)));
    all
}

const DTYPES: [Component; 3] = [Component::F32, Component::F16, Component::I8];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whole numbers, so that sums are exact in 32 bits and many are equal: the very same hits in the very same order.
    #[test]
    fn recall_is_one_and_ties_are_in_order(
        dtype in prop::sample::select(&DTYPES[..]),
        metric in prop::sample::select(&[Metric::Dot, Metric::L2][..]),
        dimension in 1_usize..70,
        count in 0_usize..120,
        k in 1_usize..40,
        threads in 1_usize..5,
        seed in any::<u32>(),
        gone in prop::collection::vec(0_usize..120, 0..20),
    ) {
        let number = |n: usize| ((n as u32).wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(0x9e37_79b9) >> 29;
        let row = |n: usize| (0..dimension).map(|i| number(n * dimension + i) as f32 - 3.0).collect::<Vec<f32>>();
        let all: Vec<Vec<f32>> = (0..count).map(row).collect();
        let mut collection = Collection::new(Shape { dimension, dtype, metric });
        collection.upsert(batch(dtype, 0, &all));
        // Some are replaced, some deleted.
        let replaced: Vec<Vec<f32>> = (0..count.min(5)).map(|n| row(n + 1000)).collect();
        collection.upsert(batch(dtype, 0, &replaced));
        let gone: Vec<String> = gone.iter().map(|n| format!("v{n}")).collect();
        collection.delete(gone.iter().map(String::as_str));

        let known: Vec<(String, Vec<f32>)> = replaced.iter().chain(all.iter().skip(replaced.len()))
            .enumerate().map(|(n, row)| (format!("v{n}"), row.clone()))
            .filter(|(id, _)| !gone.contains(id)).collect();
        prop_assert_eq!(collection.len(), known.len());
        let query = row(5000);
        let found = find(&collection, &query, k, None, threads);
        let found: Vec<(String, f32)> = found.into_iter().map(|hit| (hit.id, hit.score)).collect();
        let right: Vec<(String, f32)> =
            naive(metric, &known, &query).into_iter().take(k).map(|(id, score)| (id, score as f32)).collect();
        prop_assert_eq!(found, right);
    }

    /// Any numbers: scores are those of 64 bits but for rounding, and nothing that is clearly nearer was missed.
    #[test]
    fn scores_are_right_for_any_numbers(
        dtype in prop::sample::select(&[Component::F32, Component::F16][..]),
        metric in prop::sample::select(&[Metric::Dot, Metric::L2, Metric::Cosine][..]),
        all in prop::collection::vec(prop::collection::vec(-100.0_f32..100.0, 33), 1..60),
        query in prop::collection::vec(-100.0_f32..100.0, 33),
        k in 1_usize..10,
    ) {
        let mut collection = Collection::new(Shape { dimension: 33, dtype, metric });
        collection.upsert(batch(dtype, 0, &all));
        let kept = |value: &f32| match dtype { Component::F16 => f16::from_f32(*value).to_f32(), _ => *value };
        let known: Vec<(String, Vec<f32>)> = all.iter().enumerate()
            .map(|(n, row)| (format!("v{n}"), row.iter().map(kept).collect())).collect();
        let right = naive(metric, &known, &query);
        let found = find(&collection, &query, k, None, 2);
        prop_assert_eq!(found.len(), k.min(all.len()));
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * (1.0 + b.abs().max(match metric { Metric::Cosine => 0.0, _ => 1e4 }));
        for (hit, (_, expected)) in found.iter().zip(&right) {
            prop_assert!(close(f64::from(hit.score), *expected), "{} is not {}", hit.score, expected);
            let own = right.iter().find(|(id, _)| *id == hit.id).unwrap().1;
            prop_assert!(close(f64::from(hit.score), own), "{}: {} is not {}", hit.id, hit.score, own);
        }
    }
}

#[test]
fn a_batch_and_more_threads_change_no_bit() {
    let row = |n: usize| (0..100).map(|i| ((n * 100 + i) as f32).sin()).collect::<Vec<f32>>();
    let all: Vec<Vec<f32>> = (0..3000).map(row).collect();
    for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
        let mut collection = Collection::new(Shape { dimension: 100, dtype: Component::F32, metric });
        collection.upsert(batch(Component::F32, 0, &all));
        let queries: Vec<Query> = (5000..5009).map(|n| collection.query(row(n))).collect();
        let wanted = Wanted { k: 17, filter: None, include_metadata: false };
        let together = collection.search(&queries, &wanted, 3, &never);
        for (query, together) in queries.iter().zip(together) {
            let alone = collection.search(std::slice::from_ref(query), &wanted, 1, &never).remove(0);
            assert_eq!(alone, together);
        }
    }
}

#[test]
fn a_filter_lets_through_what_fits_and_nothing_else() {
    let all: Vec<Vec<f32>> = (0..50).map(|n| vec![n as f32, 1.0]).collect();
    let mut collection = Collection::new(Shape { dimension: 2, dtype: Component::F32, metric: Metric::Dot });
    collection.upsert(batch(Component::F32, 0, &all));
    let ids = |filter: Filter| {
        let found = find(&collection, &[1.0, 0.0], 3, Some(&filter), 2);
        found.into_iter().map(|hit| hit.id).collect::<Vec<_>>()
    };
    let metadata = |value: serde_json::Value| value.as_object().cloned().unwrap();
    assert_eq!(ids(Filter { metadata: metadata(json!({"even": true})), ids: None }), ["v48", "v46", "v44"]);
    assert_eq!(ids(Filter { metadata: metadata(json!({"even": true, "n": 7})), ids: None }), [""; 0]);
    let some = Some(["v3", "v4", "v4", "nobody"].map(str::to_owned).to_vec());
    assert_eq!(ids(Filter { ids: some.clone(), ..Filter::default() }), ["v4", "v3"]);
    assert_eq!(ids(Filter { ids: some, metadata: metadata(json!({"even": false})) }), ["v3"]);
    assert_eq!(ids(Filter { ids: Some(vec![]), ..Filter::default() }), [""; 0]);
}

#[test]
fn what_is_counted_as_memory_is_given_back() {
    let mut collection = Collection::new(Shape { dimension: 3, dtype: Component::I8, metric: Metric::L2 });
    let all = batch(Component::I8, 0, &[vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]]);
    let takes = collection.bytes_of(&all);
    collection.upsert(all.clone());
    assert_eq!(collection.bytes(), takes);
    collection.upsert(all);
    assert_eq!(collection.bytes(), takes, "replaced, not added");
    assert_eq!(collection.delete(["v0", "v1", "v1", "nobody"]), 2);
    assert_eq!(collection.bytes(), 0);
    assert!(!collection.has("v0"));
}

#[test]
fn a_search_whose_caller_left_ends() {
    let all: Vec<Vec<f32>> = (0..50).map(|n| vec![n as f32]).collect();
    let mut collection = Collection::new(Shape { dimension: 1, dtype: Component::F32, metric: Metric::Dot });
    collection.upsert(batch(Component::F32, 0, &all));
    let wanted = Wanted { k: 3, filter: None, include_metadata: false };
    assert!(collection.search(&[collection.query(vec![1.0])], &wanted, 1, &|| true)[0].is_empty());
}

/// A copy that is kept by `read`, as another plugin would.
#[derive(Default)]
struct Copied {
    version: Option<String>,
    ids: Vec<String>,
    rows: Vec<f32>,
}

impl Copied {
    fn follow(&mut self, collection: &Collection, most: u64) {
        let dimension = collection.shape.dimension;
        let (mut first, mut version) = (0, None);
        loop {
            let news = collection.news(self.version.as_deref(), first, most);
            if news.whole && version.is_none() {
                *self = Self::default();
            }
            version.get_or_insert(news.version);
            self.ids.resize(collection.len(), String::new());
            self.rows.resize(collection.len() * dimension, 0.0);
            let Rows::F32(rows) = &news.rows else { panic!() };
            for (n, place) in news.places.iter().map(|place| *place as usize).enumerate() {
                self.ids[place] = news.ids[n].clone();
                self.rows[place * dimension..][..dimension]
                    .copy_from_slice(&rows[n * dimension..][..dimension]);
            }
            match news.next {
                Some(next) => first = next,
                None => break,
            }
        }
        self.version = version;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done to a collection, who reads what is new has what is there, and reads no more than that.
    #[test]
    fn a_copy_that_reads_the_news_is_the_collection(
        steps in prop::collection::vec((any::<bool>(), 0_usize..20, 1_usize..6), 1..20),
        most in 1_u64..200,
    ) {
        let shape = Shape { dimension: 2, dtype: Component::F32, metric: Metric::Cosine };
        let mut collection = Collection::new(shape);
        let mut copied = Copied::default();
        for (number, (is_upsert, first, count)) in steps.into_iter().enumerate() {
            if is_upsert {
                let rows: Vec<Vec<f32>> = (0..count).map(|n| vec![number as f32, n as f32 + 1.0]).collect();
                collection.upsert(batch(Component::F32, first, &rows));
            } else {
                let ids: Vec<String> = (first..first + count).map(|n| format!("v{n}")).collect();
                collection.delete(ids.iter().map(String::as_str));
            }
            copied.follow(&collection, most);
            let contents = collection.contents();
            let ids: Vec<&str> = contents.ids.iter().map(|id| &**id).collect();
            prop_assert_eq!(&copied.ids, &ids);
            prop_assert_eq!(&Rows::F32(copied.rows.clone()), contents.rows);
            let news = collection.news(copied.version.as_deref(), 0, most);
            prop_assert!(news.places.is_empty() && !news.whole, "nothing is new");
        }
    }
}

#[test]
fn a_copy_of_another_collection_begins_anew() {
    let shape = Shape { dimension: 1, dtype: Component::F32, metric: Metric::Dot };
    let (mut one, mut other) = (Collection::new(shape), Collection::new(shape));
    for collection in [&mut one, &mut other] {
        collection.upsert(batch(Component::F32, 0, &[vec![1.0]]));
    }
    let version = one.news(None, 0, 1).version;
    for since in [None, Some("nonsense"), Some("1-x"), Some(&*version)] {
        let news = other.news(since, 0, 1);
        assert_eq!((news.whole, news.places), (true, vec![0]));
    }
}

/// A query of whole numbers is answered by other arithmetic, which must not show.
#[test]
fn whole_numbers_change_no_bit() {
    let number = |n: usize| ((n as u32).wrapping_mul(2_654_435_761) >> 24) as f32 - 128.0;
    for (dimension, metric) in [(7, Metric::L2), (100, Metric::L2), (384, Metric::Cosine), (384, Metric::Dot)]
    {
        let row = |n: usize| (0..dimension).map(|i| number(n * dimension + i)).collect::<Vec<f32>>();
        let all: Vec<Vec<f32>> = (0..300).map(row).collect();
        let mut collection = Collection::new(Shape { dimension, dtype: Component::I8, metric });
        collection.upsert(batch(Component::I8, 0, &all));
        let query = collection.query(row(5000));
        let kernel = if metric == Metric::L2 { Kernel::Distance } else { Kernel::Dot };
        assert!(query.whole.as_ref().unwrap().is_exact(kernel));
        let slow = Query { whole: None, ..query.clone() };
        let wanted = Wanted { k: 300, filter: None, include_metadata: false };
        let both = collection.search(&[query, slow], &wanted, 1, &never);
        assert_eq!(both[0], both[1]);
    }
}

/// Rows of bytes are passed over by bounds; what is found is what plain scores say, to the bit, whether rows are alike or
/// nothing like each other, and whether the best come first or last.
#[test]
fn bounds_pass_over_no_hit() {
    let mut state = 7_u64;
    let mut noise = move |most: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    };
    for (metric, spread) in
        [Metric::Cosine, Metric::Dot].into_iter().flat_map(|metric| [(metric, 256), (metric, 3)])
    {
        let dimension = 40;
        let mut collection = Collection::new(Shape { dimension, dtype: Component::I8, metric });
        let query: Vec<f32> = (0..dimension).map(|_| noise(1000) as f32 * 0.37 - 150.0).collect();
        let rows: Vec<Vec<f32>> = (0..2000)
            .map(|row| {
                let towards = if row % 500 < 250 { 0.0 } else { (row % 500) as f32 / 5.0 };
                let near = query.iter().map(|q| q.signum() * towards);
                near.map(|near| {
                    (near + noise(spread) as f32 - spread as f32 / 2.0).clamp(-128.0, 127.0).trunc()
                })
                .collect()
            })
            .collect();
        collection.upsert(batch(Component::I8, 0, &rows));
        let asked = collection.query(query.clone());
        assert!(asked.nearly.is_some() && asked.whole.is_none());
        let mut plain: Vec<(f32, String)> = (0..2000_u32)
            .map(|row| (score::told(metric, collection.score_of(row, &asked)), format!("v{row}")))
            .collect();
        plain.sort_by(|a, b| score::order(a.0, b.0).then_with(|| a.1.cmp(&b.1)));
        for (k, threads) in [(1, 1), (10, 1), (10, 3), (31, 2), (500, 1)] {
            let found = find(&collection, &query, k, None, threads);
            let found: Vec<(f32, String)> = found.into_iter().map(|hit| (hit.score, hit.id)).collect();
            assert_eq!(found, plain[..k], "{metric:?}, {spread}, {k}");
        }
    }
}
