//! Batches, updates, epochs and positions.

use std::collections::BTreeSet;

use sft::ErrorKind;
use sft::data::{
    Batch, Dataset, Loader, LoaderOptions, Order, Packing, Position, RowOptions, Update,
    ValidationSize,
};

/// Documents of the given lengths; every token of document `i` is `i`.
fn dataset(lengths: &[usize], options: RowOptions) -> Dataset {
    let documents: Vec<Vec<i32>> = lengths
        .iter()
        .enumerate()
        .map(|(i, &n)| vec![i as i32; n])
        .collect();
    let pairs = documents.iter().map(|d| (d.as_slice(), d.as_slice()));
    Dataset::from_documents(pairs, options)
        .expect("documents")
        .0
}

fn loader(lengths: &[usize], options: LoaderOptions) -> Loader {
    Loader::new(dataset(lengths, RowOptions::default()), options).expect("rows")
}

fn options(batch: usize, accumulate: usize, order: Order) -> LoaderOptions {
    LoaderOptions {
        per_device_train_batch_size: batch,
        gradient_accumulation_steps: accumulate,
        order,
        ..LoaderOptions::default()
    }
}

/// The documents of an update, by micro-batch.
fn documents(update: &Update) -> Vec<Vec<i32>> {
    let first = |b: &Batch| b.sequences().map(|s| b.tokens[s.start]).collect();
    update.micro_batches.iter().map(first).collect()
}

#[test]
fn an_epoch_in_the_peer_s_order() {
    let mut loader = loader(&[2; 8], options(3, 2, Order::Random));
    assert_eq!(loader.micro_batches_per_epoch(), 3);
    assert_eq!(loader.updates_per_epoch(), 2);
    // torch.randperm(8) at seeds 42 and 43.
    let updates: Vec<Update> = (0..3).map(|_| loader.next_update()).collect();
    assert_eq!(documents(&updates[0]), [vec![6, 3, 0], vec![7, 2, 1]]);
    assert_eq!(documents(&updates[1]), [[4, 5]]);
    assert_eq!(documents(&updates[2]), [[4, 5, 7], [1, 3, 2]]);
    let ends: Vec<bool> = updates.iter().map(|u| u.epoch_end).collect();
    assert_eq!(ends, [false, true, false]);
    assert_eq!(updates[0].epoch, 2.0 / 3.0);
    assert_eq!(updates[1].epoch, 1.0);
    assert_eq!(updates[2].epoch, 1.0 + 2.0 / 3.0);
}

#[test]
fn updates_of_every_size_visit_each_row_once() {
    for n in [1, 2, 5, 7, 8] {
        for batch in [1, 2, 3, 8] {
            for accumulate in [1, 2, 5] {
                for order in [Order::Random, Order::Sequential, Order::GroupByLength] {
                    let mut loader = loader(&vec![3; n], options(batch, accumulate, order));
                    let m = n.div_ceil(batch);
                    assert_eq!(loader.updates_per_epoch(), m.div_ceil(accumulate).max(1));
                    for epoch in 1..=2 {
                        let mut seen = BTreeSet::new();
                        for u in 1..=loader.updates_per_epoch() {
                            let update = loader.next_update();
                            assert!(!update.micro_batches.is_empty());
                            seen.extend(documents(&update).concat());
                            let last = u == loader.updates_per_epoch();
                            assert_eq!(update.epoch_end, last);
                            assert_eq!(update.epoch == f64::from(epoch), last);
                        }
                        assert_eq!(seen.len(), n);
                    }
                }
            }
        }
    }
}

#[test]
fn seeking_gives_what_walking_gives() {
    for order in [Order::Random, Order::Sequential, Order::GroupByLength] {
        let lengths: Vec<usize> = (1..30).map(|i| i * 7 % 13 + 1).collect();
        let mut walked = loader(&lengths, options(2, 3, order));
        for _ in 0..13 {
            let position = walked.position();
            let json = serde_json::to_string(&position).expect("JSON");
            let position: Position = serde_json::from_str(&json).expect("a position");
            let mut jumped = loader(&lengths, options(2, 3, order));
            jumped.seek(position).expect("a position of this dataset");
            let expected = walked.next_update();
            assert_eq!(jumped.next_update(), expected);
            // Back again.
            jumped.seek(position).expect("the same position");
            assert_eq!(jumped.next_update(), expected);
        }
    }
    let mut loader = loader(&[1; 4], options(2, 1, Order::Random));
    let error = loader.seek(Position {
        epoch: 0,
        update: 2,
    });
    assert_eq!(error.expect_err("past the end").kind(), ErrorKind::Data);
}

#[test]
fn the_bound_of_a_micro_batch_holds() {
    let lengths: Vec<usize> = (0..23).map(|i| (i * 37 + 5) % 41 + 1).collect();
    for order in [Order::Random, Order::Sequential, Order::GroupByLength] {
        for batch in [1, 4, 23, 50] {
            let mut loader = loader(&lengths, options(batch, 1, order));
            let bound = loader.max_micro_batch_tokens();
            let mut largest = 0;
            for _ in 0..3 * loader.updates_per_epoch() {
                let update = loader.next_update();
                let sizes = update.micro_batches.iter().map(|b| b.tokens.len());
                largest = largest.max(sizes.max().expect("a micro-batch"));
            }
            assert!(largest <= bound, "{order:?} {batch}: {largest} > {bound}");
            if order == Order::Sequential || batch == 1 || batch >= 23 {
                assert_eq!(largest, bound, "{order:?} {batch}");
            }
        }
    }
    let loader = loader(&lengths, options(4, 1, Order::Random));
    assert_eq!(
        Some(loader.max_sequence_length()),
        lengths.iter().copied().max()
    );
}

#[test]
fn packed_rows_keep_documents_apart_and_wrapped_ones_do_not() {
    let lengths = [11, 4, 5, 3, 7];
    let batch = |packing| {
        let row_options = RowOptions {
            max_length: Some(8),
            packing: Some(packing),
        };
        let rows = dataset(&lengths, row_options);
        let mut loader = Loader::new(rows, options(9, 1, Order::Sequential)).expect("rows");
        let longest = loader.max_sequence_length();
        let update = loader.next_update();
        assert_eq!(update.micro_batches.len(), 1);
        (
            update.micro_batches.into_iter().next().expect("one"),
            longest,
        )
    };
    let (bfd, longest) = batch(Packing::Bfd);
    assert_eq!(bfd.seq_starts, [0, 8, 15, 20, 23]);
    assert_eq!(longest, 8);
    let (wrapped, longest) = batch(Packing::Wrapped);
    assert_eq!(wrapped.seq_starts, [0, 8, 16, 24]);
    assert_eq!(longest, 8);
    assert_eq!(wrapped.tokens.len(), 30);
    bfd.validate(5).expect("a sound batch");
    wrapped.validate(5).expect("a sound batch");
}

#[test]
fn a_short_last_batch_can_be_left_out() {
    let mut dropping = options(3, 1, Order::Sequential);
    dropping.drop_last = true;
    let mut loader = loader(&[1; 8], dropping.clone());
    assert_eq!(loader.updates_per_epoch(), 2);
    loader.next_update();
    assert!(loader.next_update().epoch_end);
    let error = Loader::new(dataset(&[1, 1], RowOptions::default()), dropping);
    assert_eq!(error.expect_err("no full batch").kind(), ErrorKind::Config);
}

#[test]
fn a_loader_needs_rows_and_sizes() {
    let empty = Loader::new(
        dataset(&[], RowOptions::default()),
        LoaderOptions::default(),
    );
    assert_eq!(empty.expect_err("no rows").kind(), ErrorKind::Data);
    for (batch, accumulate) in [(0, 1), (1, 0)] {
        let options = options(batch, accumulate, Order::Random);
        let error = Loader::new(dataset(&[1], RowOptions::default()), options);
        assert_eq!(error.expect_err("a size of 0").kind(), ErrorKind::Config);
    }
}

#[test]
fn a_split_is_disjoint_complete_and_repeatable() {
    let all = dataset(&[2; 50], RowOptions::default());
    let ids = |d: &Dataset| -> Vec<i32> { (0..d.len()).map(|i| d.document(i).0[0]).collect() };
    let split = |size, seed| {
        let parts = all.split(size, seed, RowOptions::default());
        let ((train, report), (validation, _)) = parts.expect("two parts");
        assert_eq!(report.rows as usize, train.len());
        (ids(&train), ids(&validation))
    };
    let (train, validation) = split(ValidationSize::Fraction(0.1), 7);
    assert_eq!(validation.len(), 5);
    assert!(train.is_sorted() && validation.is_sorted());
    let both: BTreeSet<i32> = train.iter().chain(&validation).copied().collect();
    assert_eq!((both.len(), train.len()), (50, 45));
    assert_eq!(
        split(ValidationSize::Count(5), 7),
        (train.clone(), validation)
    );
    assert_ne!(split(ValidationSize::Count(5), 8).0, train);
    for size in [
        ValidationSize::Count(0),
        ValidationSize::Count(50),
        ValidationSize::Fraction(1.5),
        ValidationSize::Fraction(f64::NAN),
    ] {
        let error = all.split(size, 7, RowOptions::default());
        assert_eq!(error.expect_err("no such part").kind(), ErrorKind::Config);
    }
}

#[test]
fn shuffled_documents_are_the_same_in_an_order_drawn_by_the_seed() {
    let all = dataset(&[2; 50], RowOptions::default());
    let ids = |d: &Dataset| -> Vec<i32> { (0..d.len()).map(|i| d.document(i).0[0]).collect() };
    let shuffled = |seed| ids(&all.shuffle(seed).expect("rows").0);
    let order = shuffled(7);
    assert_eq!((&order, ids(&all)), (&shuffled(7), (0..50).collect()));
    let mut sorted = order.clone();
    sorted.sort();
    assert_eq!(sorted, ids(&all));
    // No place is left out: neither end stays what it was under every seed.
    let moved = |at: usize| (0..20).any(|seed| shuffled(seed)[at] != at as i32);
    assert!(moved(0) && moved(49) && shuffled(8) != order);

    // Packed rows are made of the shuffled documents, and the report names lines of the file in order.
    let options = RowOptions {
        max_length: Some(4),
        packing: Some(Packing::Wrapped),
    };
    let packed = dataset(&[3, 5, 5, 5, 3, 5, 5], options);
    let (shuffled, report) = packed.shuffle(7).expect("rows");
    let documents: Vec<i32> = shuffled.batches(99).next().expect("rows").tokens;
    let plain: Vec<i32> = packed.batches(99).next().expect("rows").tokens;
    assert_ne!(documents, plain);
    assert_eq!((documents.len() as u64, report.tokens), (31, 31));
    let options = RowOptions {
        packing: None,
        ..options
    };
    let (_, report) = dataset(&[3, 5, 5, 5, 3, 5, 5], options)
        .shuffle(7)
        .expect("rows");
    assert_eq!(report.truncated.first_lines, [2, 3, 4, 6, 7]);
    assert!(
        dataset(&[], options)
            .shuffle(7)
            .expect("nothing")
            .0
            .is_empty()
    );
}

#[test]
fn evaluation_visits_every_row_in_order() {
    let rows = dataset(&[2, 3, 4, 5, 6], RowOptions::default());
    let batches: Vec<Batch> = rows.batches(2).collect();
    let sizes: Vec<usize> = batches.iter().map(|b| b.tokens.len()).collect();
    assert_eq!(sizes, [5, 9, 6]);
    assert!(
        dataset(&[], RowOptions::default())
            .batches(2)
            .next()
            .is_none()
    );
}
