//! Laws of the format, on random histories: what went in comes out, at every transaction; what was altered is noticed.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::page::{PageNo, PageSize};
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};

/// What happens to one page.
#[derive(Clone, Debug)]
enum Change {
    /// Some bytes at this place become this value.
    Edit { page: u16, at: u16, value: u8 },
    /// New content that compresses well.
    Text { page: u16, seed: u8 },
    /// New content that does not.
    Noise { page: u16, seed: u64 },
}

#[derive(Clone, Debug)]
struct Step {
    changes: Vec<Change>,
    /// The image becomes this long when the transaction ends.
    pages: u16,
    /// It is rolled back once before it is committed.
    stumbles: bool,
    /// The source knows no previous versions.
    forgetful: bool,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (any::<u16>(), any::<u16>(), any::<u8>())
            .prop_map(|(page, at, value)| Change::Edit { page, at, value }),
        1 => (any::<u16>(), any::<u8>()).prop_map(|(page, seed)| Change::Text { page, seed }),
        1 => (any::<u16>(), any::<u64>()).prop_map(|(page, seed)| Change::Noise { page, seed }),
    ]
}

fn steps(most_changes: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (
        proptest::collection::vec(change(), 0..most_changes),
        1_u16..120,
        proptest::bool::weighted(0.2),
        proptest::bool::weighted(0.1),
    );
    let step =
        step.prop_map(|(changes, pages, stumbles, forgetful)| Step { changes, pages, stumbles, forgetful });
    proptest::collection::vec(step, 1..12)
}

fn page_size() -> impl Strategy<Value = PageSize> {
    (9_u32..=16).prop_map(|log| PageSize::new(1 << log).unwrap())
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The truth: the image after every transaction.
struct Model {
    page_size: PageSize,
    images: Vec<MemoryImage>,
}

impl Model {
    fn start(page_size: PageSize) -> Self {
        let mut image = MemoryImage::new(page_size);
        image.resize(40).unwrap();
        for number in 1..=40 {
            let page = PageNo::new(number).unwrap();
            image.write(page, &noise(number.into(), page_size.bytes())).unwrap();
        }
        Self { page_size, images: vec![image] }
    }

    fn now(&self) -> &MemoryImage {
        self.images.last().unwrap()
    }

    /// The pages a step writes, their last image each, in no particular order.
    fn pages_of(&self, step: &Step) -> BTreeMap<PageNo, Vec<u8>> {
        let mut pages = BTreeMap::new();
        for change in &step.changes {
            let (Change::Edit { page, .. } | Change::Text { page, .. } | Change::Noise { page, .. }) = change;
            let page = PageNo::new(u32::from(page % step.pages) + 1).unwrap();
            let old = self.now().page(page).map_or(vec![0; self.page_size.bytes()], <[u8]>::to_vec);
            let image = pages.entry(page).or_insert(old);
            match *change {
                Change::Edit { at, value, .. } => {
                    let at = usize::from(at) % (image.len() - 8);
                    image[at..at + 8].fill(value);
                }
                Change::Text { seed, .. } => {
                    image
                        .iter_mut()
                        .enumerate()
                        .for_each(|(at, byte)| *byte = seed.wrapping_add(at as u8 / 7));
                }
                Change::Noise { seed, .. } => *image = noise(seed, image.len()),
            }
        }
        pages
    }

    fn apply(&mut self, pages: &BTreeMap<PageNo, Vec<u8>>, count: u16) {
        let mut image = self.now().clone();
        image.resize(count.into()).unwrap();
        for (page, bytes) in pages {
            image.write(*page, bytes).unwrap();
        }
        self.images.push(image);
    }
}

fn params(page_size: PageSize, first: u64, image_pages: u32, chain_before: Digest) -> EncoderParams {
    EncoderParams {
        database: DatabaseId::from_bytes(*b"database"),
        timeline: TimelineId::FIRST,
        page_size,
        first: TxId::new(first).unwrap(),
        image_pages,
        chain_before,
        effort: Effort::Hot,
    }
}

fn transaction(number: u64, pages: usize, image: &MemoryImage) -> Transaction {
    let time = Timestamp::from_micros(1_700_000_000_000_000 + number as i64 * 777);
    Transaction {
        tx: TxId::new(number).unwrap(),
        time,
        not_before: time,
        flags: TxFlags::NONE,
        pages: pages as u32,
        image_pages: image.page_count(),
        state: image.state(),
    }
}

fn feed(
    encoder: &mut Encoder<Vec<u8>>,
    model: &Model,
    pages: &BTreeMap<PageNo, Vec<u8>>,
    forgetful: bool,
    backwards: bool,
) {
    let mut order: Vec<_> = pages.iter().collect();
    if backwards {
        order.reverse();
    }
    for (page, bytes) in order {
        let previous =
            (!forgetful && encoder.wants_previous(*page)).then(|| model.now().page(*page)).flatten();
        encoder.page(*page, bytes, previous).unwrap();
    }
}

/// Encodes the steps, in parts of `per_part` transactions.
fn encode(page_size: PageSize, steps: &[Step], per_part: usize) -> (Model, Bytes) {
    let mut model = Model::start(page_size);
    let mut object = Vec::new();
    let mut number = 2;
    let mut chain = chain_start(DatabaseId::from_bytes(*b"database"), TimelineId::FIRST);
    for run in steps.chunks(per_part) {
        let before = model.now().page_count();
        let mut encoder = Encoder::new(params(page_size, number, before, chain), Vec::new());
        for step in run {
            let pages = model.pages_of(step);
            if step.stumbles {
                feed(&mut encoder, &model, &pages, false, true);
                encoder.rollback().unwrap();
            }
            feed(&mut encoder, &model, &pages, step.forgetful, number % 3 == 0);
            model.apply(&pages, step.pages);
            encoder.commit(&transaction(number, pages.len(), model.now())).unwrap();
            number += 1;
        }
        let finished = encoder.finish().unwrap();
        chain = finished.header.chain_after;
        object.extend(finished.prologue);
        object.extend(finished.frames);
    }
    (model, object.into())
}

/// An image that compares itself with the truth at every transaction.
struct Checked<'a> {
    image: MemoryImage,
    model: &'a Model,
    seen: usize,
}

impl PageStore for Checked<'_> {
    fn page_size(&self) -> PageSize {
        self.image.page_size()
    }
    fn page_count(&self) -> u32 {
        self.image.page_count()
    }
    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> io::Result<()> {
        self.image.read(page, buffer)
    }
    fn write(&mut self, page: PageNo, image: &[u8]) -> io::Result<()> {
        self.image.write(page, image)
    }
    fn resize(&mut self, pages: u32) -> io::Result<()> {
        self.image.resize(pages)
    }
    fn committed(&mut self, tx: &Transaction) -> io::Result<()> {
        self.seen += 1;
        let truth = &self.model.images[tx.tx.get() as usize - 1];
        if self.image == *truth && tx.state == truth.state() {
            return Ok(());
        }
        Err(io::Error::other(format!("transaction {} differs", tx.tx)))
    }
}

fn all_parts(object: &Bytes) -> Vec<Part> {
    parts(object).collect::<Result<_, _>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_transaction_comes_back(
        page_size in page_size(), steps in steps(60), per_part in 1_usize..12, until in 1_u64..14,
    ) {
        let (model, object) = encode(page_size, &steps, per_part);
        let parts = all_parts(&object);
        let mut replayer = Replayer::new();
        let mut image = Checked { image: model.images[0].clone(), model: &model, seen: 0 };
        let mut at = TxId::FIRST;
        for part in &parts {
            part.check().unwrap();
            at = replayer.replay_part(part, at, TxId::new(u64::MAX).unwrap(), &mut image).unwrap();
        }
        prop_assert_eq!(image.seen, steps.len());
        prop_assert_eq!(at.get() as usize, model.images.len());

        let until = TxId::new(until.min(at.get())).unwrap();
        let mut image = Checked { image: model.images[0].clone(), model: &model, seen: 0 };
        let mut at = TxId::FIRST;
        for part in parts.iter().take_while(|part| part.prologue.header.range.first() <= until) {
            at = replayer.replay_part(part, at, until, &mut image).unwrap();
        }
        prop_assert_eq!(at, until);
        prop_assert_eq!(&image.image, &model.images[until.get() as usize - 1]);
    }

    #[test]
    fn what_was_cut_or_flipped_is_refused(
        steps in steps(8), cut in any::<prop::sample::Index>(), bit in 0_u32..8,
    ) {
        let (_, object) = encode(PageSize::MIN, &steps, 5);
        let at = cut.index(object.len());
        let damaged = |bytes: Vec<u8>| parts(&bytes.into()).try_for_each(|part| part?.check());
        let mut flipped = object.to_vec();
        flipped[at] ^= 1 << bit;
        prop_assert!(damaged(flipped).is_err());
        // A cut between two parts leaves a whole, shorter object: only its name tells.
        let ends: Vec<u64> = all_parts(&object).iter()
            .scan(0, |end, part| { *end += part.prologue.header.part_len(); Some(*end) }).collect();
        prop_assert_eq!(damaged(object[..at].to_vec()).is_ok(), ends.contains(&(at as u64)));
    }
}

fn small(page_size: PageSize) -> (Model, Encoder<Vec<u8>>) {
    let model = Model::start(page_size);
    let encoder = Encoder::new(params(page_size, 2, 40, Digest::from_bytes([0; 32])), Vec::new());
    (model, encoder)
}

#[test]
fn a_huge_transaction_is_streamed_and_can_be_taken_back() {
    let size = PageSize::new(4096).unwrap();
    let (mut model, mut encoder) = small(size);
    let pages: BTreeMap<_, _> =
        (1..=1500).map(|n| (PageNo::new(n).unwrap(), vec![n as u8; size.bytes()])).collect();
    let few: BTreeMap<_, _> = pages.clone().into_iter().take(3).collect();
    feed(&mut encoder, &model, &few, false, false);
    model.apply(&few, 40);
    encoder.commit(&transaction(2, 3, model.now())).unwrap();
    for backwards in [false, true] {
        let before = encoder.encoded_bytes();
        feed(&mut encoder, &model, &pages, false, backwards);
        assert!(encoder.frames_len > 0);
        assert!(encoder.open.images.len() <= FRAME_BYTES_MAX);
        encoder.rollback().unwrap();
        assert_eq!((encoder.frames_len, encoder.sink.len(), encoder.page_versions()), (0, 0, 3));
        assert!(encoder.encoded_bytes() <= before);
    }
    feed(&mut encoder, &model, &pages, false, true);
    model.apply(&pages, 1500);
    encoder.commit(&transaction(3, 1500, model.now())).unwrap();
    let finished = encoder.finish().unwrap();
    let object = [finished.prologue, finished.frames].concat().into();
    let part = all_parts(&object).remove(0);
    part.check().unwrap();
    let mut image = Checked { image: model.images[0].clone(), model: &model, seen: 0 };
    Replayer::new().replay_part(&part, TxId::FIRST, TxId::new(3).unwrap(), &mut image).unwrap();
    assert_eq!(image.seen, 2);
}

#[test]
fn a_page_that_was_cut_off_has_no_previous_version() {
    let size = PageSize::MIN;
    let (mut model, mut encoder) = small(size);
    let page = PageNo::new(30).unwrap();
    assert!(encoder.wants_previous(page));
    let none = BTreeMap::new();
    model.apply(&none, 10);
    encoder.commit(&transaction(2, 0, model.now())).unwrap();
    assert!(!encoder.wants_previous(page));
    model.apply(&none, 40);
    encoder.commit(&transaction(3, 0, model.now())).unwrap();
    assert!(!encoder.wants_previous(page), "the frame begins before the cut");
    encoder.page(page, &[1; 512], None).unwrap();
    assert!(!encoder.wants_previous(page), "it is in the open frame");
}

#[test]
fn a_replay_goes_on_only_from_the_state_before() {
    let (_, object) = encode(
        PageSize::MIN,
        &[Step {
            changes: vec![Change::Text { page: 3, seed: 1 }],
            pages: 40,
            stumbles: false,
            forgetful: false,
        }],
        1,
    );
    let part = all_parts(&object).remove(0);
    let last = TxId::new(9).unwrap();
    let mut image = Model::start(PageSize::MIN).images.remove(0);
    let mut replay = |from| Replayer::new().replay_part(&part, TxId::new(from).unwrap(), last, &mut image);
    assert!(matches!(replay(3), Err(SegmentError::NotAdjacent { .. })));
    assert_eq!(replay(1).unwrap().get(), 2);
    assert_eq!(replay(2).unwrap().get(), 2, "a base at the last transaction: nothing to do");
    let mut small = MemoryImage::new(PageSize::MIN);
    let found = Replayer::new().replay_part(&part, TxId::FIRST, last, &mut small);
    assert!(matches!(found, Err(SegmentError::NoPrevious { .. })), "{found:?}");
    let mut other = MemoryImage::new(PageSize::MAX);
    let found = Replayer::new().replay_part(&part, TxId::FIRST, last, &mut other);
    assert!(matches!(found, Err(SegmentError::PageSize { .. })));
}

#[test]
fn a_history_begins_with_its_base() {
    let (model, _) = small(PageSize::MIN);
    let zero = Digest::from_bytes([0; 32]);
    let mut encoder = Encoder::new(params(PageSize::MIN, 1, 0, zero), Vec::new());
    let first = Transaction {
        flags: TxFlags { needs_base: true, ..TxFlags::NONE },
        ..transaction(1, 0, model.now())
    };
    encoder.commit(&first).unwrap();
    encoder.page(PageNo::FIRST, &[9; 512], model.now().page(PageNo::FIRST)).unwrap();
    let mut image = model.now().clone();
    image.write(PageNo::FIRST, &[9; 512]).unwrap();
    encoder.commit(&transaction(2, 1, &image)).unwrap();
    let finished = encoder.finish().unwrap();
    let part = all_parts(&[finished.prologue, finished.frames].concat().into()).remove(0);
    let mut replayed = model.now().clone();
    let until = TxId::new(2).unwrap();
    assert_eq!(Replayer::new().replay_part(&part, TxId::FIRST, until, &mut replayed).unwrap(), until);
    assert_eq!(replayed, image);
}

#[test]
fn what_does_not_fit_is_refused_and_can_be_rolled_back() {
    let (model, mut encoder) = small(PageSize::MIN);
    assert!(matches!(
        encoder.page(PageNo::FIRST, &[0; 511], None),
        Err(EncodeError::PageLength { found: 511, .. })
    ));
    encoder.page(PageNo::FIRST, &[0; 512], None).unwrap();
    let good = transaction(2, 1, model.now());
    let gap = TxFlags { ends_gap: true, ..TxFlags::NONE };
    let later = good.time.plus_micros(1);
    for bad in [
        Transaction { tx: TxId::new(3).unwrap(), ..good },
        Transaction { pages: 2, ..good },
        Transaction { not_before: good.time.plus_micros(-1), ..good },
        Transaction { not_before: later, flags: gap, ..good },
    ] {
        assert!(matches!(encoder.commit(&bad), Err(EncodeError::Transaction { .. })), "{bad:?}");
    }
    encoder.rollback().unwrap();
    encoder.commit(&Transaction { pages: 0, flags: gap, ..good }).unwrap();
    let next = Transaction { tx: TxId::new(3).unwrap(), pages: 0, ..good };
    for bad in [
        Transaction { flags: gap, ..next },
        Transaction { time: later, not_before: later, ..next },
        Transaction { time: good.time.plus_micros(-1), not_before: good.time.plus_micros(-1), ..next },
    ] {
        assert!(matches!(encoder.commit(&bad), Err(EncodeError::Transaction { .. })), "{bad:?}");
    }
    encoder.commit(&next).unwrap();
    encoder.page(PageNo::FIRST, &[0; 512], None).unwrap();
    assert!(matches!(encoder.finish(), Err(EncodeError::NotWhole { .. })));
}

#[test]
fn a_failing_sink_loses_nothing_committed() {
    struct Full(Vec<u8>, bool);
    impl FrameSink for Full {
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            if self.1 {
                self.0.extend(&bytes[..bytes.len() / 2]);
                return Err(io::ErrorKind::StorageFull.into());
            }
            FrameSink::append(&mut self.0, bytes)
        }
        fn truncate(&mut self, len: u64) -> io::Result<()> {
            FrameSink::truncate(&mut self.0, len)
        }
    }
    let size = PageSize::MAX;
    let model = Model::start(size);
    let zero = Digest::from_bytes([0; 32]);
    let mut encoder = Encoder::new(params(size, 2, 40, zero), Full(Vec::new(), true));
    let mut image = model.now().clone();
    image.write(PageNo::FIRST, &noise(99, size.bytes())).unwrap();
    encoder.page(PageNo::FIRST, image.page(PageNo::FIRST).unwrap(), None).unwrap();
    encoder.commit(&transaction(2, 1, &image)).unwrap();
    let fails = (2..=40).map(|n| encoder.page(PageNo::new(n).unwrap(), &noise(n.into(), size.bytes()), None));
    assert!(matches!(fails.last(), Some(Err(EncodeError::Sink(_)))));
    encoder.rollback().unwrap();
    assert!(encoder.sink.0.is_empty());
    encoder.sink.1 = false;
    let finished = encoder.finish().unwrap();
    let part = all_parts(&[finished.prologue, finished.frames.0].concat().into()).remove(0);
    let mut replayed = model.now().clone();
    Replayer::new().replay_part(&part, TxId::FIRST, TxId::new(2).unwrap(), &mut replayed).unwrap();
    assert_eq!(replayed, image);
}

#[test]
fn a_page_cut_off_and_grown_again_between_two_frames_has_zeros_as_its_previous_version() {
    let size = PageSize::MAX;
    let (mut model, mut encoder) = small(size);
    let one = |number: u32, byte| BTreeMap::from([(PageNo::new(number).unwrap(), vec![byte; size.bytes()])]);
    let mut number = 2;
    let mut step = |encoder: &mut Encoder<Vec<u8>>, pages: &BTreeMap<_, _>, count: u16| {
        feed(encoder, &model, pages, false, false);
        model.apply(pages, count);
        encoder.commit(&transaction(number, pages.len(), model.now())).unwrap();
        number += 1;
    };
    // Fills the frame to its end; what follows without pages belongs to no frame.
    while !encoder.is_full() {
        step(&mut encoder, &one(1, 7), 40);
    }
    let none = BTreeMap::new();
    step(&mut encoder, &none, 10);
    step(&mut encoder, &none, 40);
    // A match with the version before of one page goes on into that of the next.
    let kept = PageNo::new(5).unwrap();
    let mut edited = Model::start(size).now().page(kept).unwrap().to_vec();
    edited[9] ^= 1;
    let page = PageNo::new(30).unwrap();
    assert!(encoder.wants_previous(page));
    step(&mut encoder, &BTreeMap::from([(kept, edited), (page, vec![0; size.bytes()])]), 40);
    let finished = encoder.finish().unwrap();
    let object = [finished.prologue, finished.frames].concat().into();
    let part = all_parts(&object).remove(0);
    let mut image = Checked { image: model.images[0].clone(), model: &model, seen: 0 };
    let last = part.prologue.header.range.last();
    assert_eq!(Replayer::new().replay_part(&part, TxId::FIRST, last, &mut image).unwrap(), last);
}
