//! A small repository in memory with a real history in it: real segments and bases, and the truth beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;

use crate::base::{BaseBuilder, Pack};
use crate::digest::Hasher;
use crate::history::testing::{at, database, tx};
use crate::history::{BaseEntry, Findings, History, Seen, SegmentEntry, Timeline};
use crate::ids::{DatabaseId, Digest, HostId, Position, TimelineId, TxId};
use crate::page::{PageNo, PageSize, StateChecksum};
use crate::plan::{RestorePlan, Target};
use crate::restore::{Cancel, Inventory, Objects, Options, Order, ReadError};
use crate::segment::{Effort, Encoder, EncoderParams, MemoryImage, PageStore, chain_start};
use crate::store::keys::{BaseKey, SegmentKey, pack_key};
use crate::transaction::{Transaction, TxFlags};

/// Objects by key, checked against their names as a repository does.
#[derive(Clone, Default)]
pub(crate) struct MemoryObjects(Arc<Mutex<BTreeMap<String, Bytes>>>);

impl MemoryObjects {
    pub(crate) fn put(&self, key: &impl ToString, bytes: impl Into<Bytes>) {
        self.0.lock().unwrap().insert(key.to_string(), bytes.into());
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }

    pub(crate) fn remove(&self, key: &str) -> Bytes {
        self.0.lock().unwrap().remove(key).unwrap()
    }

    pub(crate) fn bytes(&self, key: &str) -> Bytes {
        self.0.lock().unwrap().get(key).unwrap().clone()
    }

    fn get(&self, key: &str) -> Result<Bytes, ReadError> {
        let found = self.0.lock().unwrap().get(key).cloned();
        found.ok_or_else(|| ReadError::Missing { object: key.to_owned() })
    }

    fn whole(&self, key: &str, digest: Digest) -> Result<Bytes, ReadError> {
        let bytes = self.get(key)?;
        let found = Hasher::Plain.digest(&bytes);
        if found == digest { Ok(bytes) } else { Err(ReadError::damaged(&key, &format!("digest {found}"))) }
    }

    fn range(&self, key: &str, range: Range<u64>) -> Result<Bytes, ReadError> {
        let bytes = self.get(key)?;
        let part = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        if part.end > bytes.len() {
            return Err(ReadError::damaged(&key, &"it is too short"));
        }
        Ok(bytes.slice(part))
    }
}

impl Objects for MemoryObjects {
    async fn hasher(&self, _: DatabaseId) -> Result<Hasher, ReadError> {
        Ok(Hasher::Plain)
    }

    fn segment(&self, key: SegmentKey) -> impl Future<Output = Result<Bytes, ReadError>> + Send {
        std::future::ready(self.whole(&key.to_string(), key.digest))
    }

    fn segment_range(
        &self,
        key: SegmentKey,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send {
        std::future::ready(self.range(&key.to_string(), range))
    }

    fn base(&self, key: BaseKey) -> impl Future<Output = Result<Bytes, ReadError>> + Send {
        std::future::ready(self.whole(&key.to_string(), key.digest))
    }

    fn pack_range(
        &self,
        database: DatabaseId,
        pack: Digest,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send {
        std::future::ready(self.range(&pack_key(database, pack), range))
    }
}

/// A source, the pipeline behind it and the repository they fill.
pub(crate) struct World {
    pub(crate) objects: MemoryObjects,
    pub(crate) findings: Findings,
    pub(crate) page_size: PageSize,
    /// The image after each transaction.
    pub(crate) images: BTreeMap<Position, (Transaction, Vec<u8>)>,
    pub(crate) now: i64,
    database: DatabaseId,
    hasher: Hasher,
    timeline: TimelineId,
    fork: Option<TxId>,
    image: MemoryImage,
    last: Option<TxId>,
    chain: Digest,
    chains: BTreeMap<Position, Digest>,
    encoder: Option<(Encoder<Vec<u8>>, TxFlags, i64)>,
    last_base: Option<crate::base::Manifest>,
}

impl World {
    /// Begins with a base of `pages` pages.
    pub(crate) fn new(page_size: PageSize, pages: u32) -> Self {
        Self::of(database(), Hasher::Plain, page_size, pages)
    }

    /// The same for a certain database, with its names made by this hasher.
    pub(crate) fn of(database: DatabaseId, hasher: Hasher, page_size: PageSize, pages: u32) -> Self {
        let mut world = Self {
            objects: MemoryObjects::default(),
            findings: Findings::default(),
            page_size,
            images: BTreeMap::new(),
            now: 1000,
            database,
            hasher,
            timeline: TimelineId::FIRST,
            fork: None,
            image: MemoryImage::new(page_size),
            last: None,
            chain: chain_start(database, TimelineId::FIRST),
            chains: BTreeMap::new(),
            encoder: None,
            last_base: None,
        };
        world.claim(None);
        world.image.resize(pages).unwrap();
        for number in 1..=pages {
            world.scribble(number, u64::from(number));
        }
        world.transact(TxFlags { needs_base: true, ..TxFlags::NONE }, pages, &[]);
        world.base();
        world
    }

    pub(crate) fn history(&self) -> History {
        History::build(self.database, self.findings.clone())
    }

    pub(crate) fn packs(&self) -> Vec<(Digest, u64)> {
        let all = self.objects.0.lock().unwrap();
        let packs = all.iter().filter(|(key, _)| key.contains("/chunk/"));
        packs
            .map(|(key, bytes)| (key.rsplit('/').next().unwrap().parse().unwrap(), bytes.len() as u64))
            .collect()
    }

    pub(crate) fn position(&self) -> Position {
        Position::new(self.timeline, self.last.unwrap())
    }

    fn claim(&mut self, parent: Option<Position>) {
        self.findings.timelines.push(Timeline {
            id: self.timeline,
            parent,
            why: "a test".to_owned(),
            host: HostId::from_bytes([1; 8]),
            host_name: "here".to_owned(),
            claimed_at: at(self.now),
        });
    }

    /// Page content that depends on the seed; every third page is half zeros.
    fn content(&self, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.page_size.bytes()];
        let filled = if seed.is_multiple_of(3) { bytes.len() / 2 } else { bytes.len() };
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes[..filled]);
        bytes
    }

    fn scribble(&mut self, page: u32, seed: u64) {
        let bytes = self.content(seed);
        self.image.write(PageNo::new(page).unwrap(), &bytes).unwrap();
    }

    /// Changes these pages (page, seed) of an image that then has `pages` pages.
    pub(crate) fn commit(&mut self, pages: u32, changes: &[(u32, u64)]) -> Position {
        self.now += 10;
        self.transact(TxFlags::NONE, pages, changes);
        self.position()
    }

    fn transact(&mut self, flags: TxFlags, pages: u32, changes: &[(u32, u64)]) {
        let number = self.last.map_or(TxId::FIRST, TxId::next);
        let before = self.image.page_count();
        if self.encoder.is_none() {
            let params = EncoderParams {
                database: self.database,
                timeline: self.timeline,
                page_size: self.page_size,
                first: number,
                image_pages: before,
                chain_before: self.chain,
                effort: Effort::Hot,
            };
            self.encoder = Some((Encoder::new(params, Vec::new()), flags, self.now));
        }
        let mut changes: BTreeMap<u32, u64> =
            changes.iter().copied().filter(|(page, _)| *page <= pages).collect();
        // What an image gains is written by the commit that makes it longer.
        (before + 1..=pages).filter(|_| !flags.needs_base).for_each(|page| {
            changes.entry(page).or_insert(u64::from(page));
        });
        for (page, seed) in &changes {
            let number = PageNo::new(*page).unwrap();
            let bytes = self.content(*seed);
            let previous = self.image.page(number).map(<[u8]>::to_vec);
            let (encoder, ..) = self.encoder.as_mut().unwrap();
            let wanted = previous.filter(|_| encoder.wants_previous(number));
            encoder.page(number, &bytes, wanted.as_deref()).unwrap();
        }
        self.image.resize(pages).unwrap();
        for (page, seed) in &changes {
            self.scribble(*page, *seed);
        }
        let transaction = Transaction {
            tx: number,
            time: at(self.now),
            not_before: at(self.now),
            flags,
            pages: u32::try_from(changes.len()).unwrap(),
            image_pages: pages,
            state: self.image.state(),
        };
        self.encoder.as_mut().unwrap().0.commit(&transaction).unwrap();
        self.last = Some(number);
        self.images.insert(self.position(), (transaction, self.image.bytes().to_vec()));
    }

    /// Finishes the segment under way and puts it.
    pub(crate) fn cut(&mut self) {
        let Some((encoder, flags, from)) = self.encoder.take() else { return };
        let finished = encoder.finish().unwrap();
        self.chain = finished.header.chain_after;
        self.chains.insert(self.position(), self.chain);
        let mut bytes = finished.prologue;
        bytes.extend_from_slice(&finished.frames);
        let key = SegmentKey {
            database: self.database,
            timeline: self.timeline,
            range: finished.header.range,
            from: at(from),
            to: at(self.now),
            flags,
            digest: self.hasher.digest(&bytes),
        };
        self.findings.segments.push(SegmentEntry { key, size: bytes.len() as u64 });
        self.objects.put(&key, bytes);
    }

    /// Cuts, and puts a base of the present state.
    pub(crate) fn base(&mut self) {
        self.cut();
        let state = self.image.state();
        self.base_of(state);
    }

    /// Puts a base of the present state, as it says, with other content in a page.
    pub(crate) fn base_with_other_content(&mut self, page: u32) {
        let (state, image) = (self.image.state(), self.image.clone());
        self.scribble(page, 0xbad);
        self.base_of(state);
        self.image = image;
    }

    /// Puts a base that says it has this state.
    pub(crate) fn base_of(&mut self, state: StateChecksum) {
        let (position, size) = (self.position(), self.page_size);
        let mut builder = BaseBuilder::new(self.hasher.clone(), self.database, position, at(self.now), size);
        if let Some(earlier) = &self.last_base {
            builder.reuse(earlier);
        }
        let put = |pack: Pack| self.objects.put(&pack_key(self.database, pack.digest), pack.bytes);
        for chunk in self.image.bytes().chunks(crate::base::CHUNK_BYTES) {
            builder.chunk(chunk).unwrap().into_iter().for_each(put);
        }
        let (pack, manifest) = builder.finish(self.image.page_count(), state).unwrap();
        pack.into_iter().for_each(put);
        let bytes = manifest.encode().unwrap();
        let key = BaseKey { database: self.database, position, digest: self.hasher.digest(&bytes) };
        self.findings.bases.push(BaseEntry { key, size: bytes.len() as u64 });
        self.objects.put(&key, bytes);
        self.last_base = Some(manifest);
    }

    /// Goes on from an earlier state on a new timeline.
    pub(crate) fn fork(&mut self, back: u64) {
        self.cut();
        let parent = Position::new(self.timeline, tx(self.last.unwrap().get() - back));
        self.now += 10;
        self.timeline = self.timeline.next();
        self.claim(Some(parent));
        self.fork = Some(parent.tx);
        self.last = Some(parent.tx);
        let (_, bytes) = self.images.get(&parent).unwrap();
        self.image = MemoryImage::from_bytes(self.page_size, bytes.clone()).unwrap();
        self.chain = self.chains.get(&parent).copied().unwrap_or(chain_start(self.database, self.timeline));
    }

    /// A daemon saw the present state.
    pub(crate) fn seen(&mut self) {
        self.now += 10;
        self.findings.seen.push(Seen { position: self.position(), time: at(self.now) });
    }

    /// Joins the last `count` segments to a wide one, which takes their place.
    pub(crate) fn group(&mut self, count: usize) {
        self.repack(count);
        let wide = self.findings.segments.pop().unwrap();
        for narrow in self.findings.segments.split_off(self.findings.segments.len() - count) {
            self.objects.remove(&narrow.key.to_string());
        }
        self.findings.segments.push(wide);
    }

    /// Joins the last `count` segments to a wide one, which is put beside them.
    pub(crate) fn repack(&mut self, count: usize) {
        self.cut();
        let narrow = self.findings.segments.split_off(self.findings.segments.len() - count);
        let bytes: Vec<u8> =
            narrow.iter().flat_map(|entry| self.objects.bytes(&entry.key.to_string()).to_vec()).collect();
        let (first, last) = (narrow.first().unwrap().key, narrow.last().unwrap().key);
        let range = crate::ids::TxRange::new(first.range.first(), last.range.last()).unwrap();
        let key = SegmentKey { range, to: last.to, digest: self.hasher.digest(&bytes), ..first };
        self.findings.segments.extend(narrow);
        self.findings.segments.push(SegmentEntry { key, size: bytes.len() as u64 });
        self.objects.put(&key, bytes);
    }
}

/// A world's objects together with their listings, which are counted.
#[derive(Clone)]
pub(crate) struct MemoryRepository {
    pub(crate) objects: MemoryObjects,
    pub(crate) findings: Arc<Mutex<Findings>>,
    /// Segments that listings gave.
    pub(crate) listed: Arc<AtomicU64>,
    /// Times the transactions of a segment were read from it.
    pub(crate) looked_into: Arc<AtomicU64>,
}

impl MemoryRepository {
    pub(crate) fn of(world: &World) -> Self {
        Self {
            objects: world.objects.clone(),
            findings: Arc::new(Mutex::new(world.findings.clone())),
            listed: Arc::default(),
            looked_into: Arc::default(),
        }
    }

    fn found<T>(&self, select: impl FnOnce(&Findings) -> T) -> T {
        select(&self.findings.lock().unwrap())
    }
}

impl Objects for MemoryRepository {
    async fn hasher(&self, database: DatabaseId) -> Result<Hasher, ReadError> {
        self.objects.hasher(database).await
    }

    async fn segment(&self, key: SegmentKey) -> Result<Bytes, ReadError> {
        self.objects.segment(key).await
    }

    async fn transactions(&self, entry: SegmentEntry) -> Result<Vec<Transaction>, ReadError> {
        self.looked_into.fetch_add(1, Ordering::Relaxed);
        self.objects.transactions(entry).await
    }

    async fn segment_range(&self, key: SegmentKey, range: Range<u64>) -> Result<Bytes, ReadError> {
        self.objects.segment_range(key, range).await
    }

    async fn base(&self, key: BaseKey) -> Result<Bytes, ReadError> {
        self.objects.base(key).await
    }

    async fn pack_range(
        &self,
        database: DatabaseId,
        pack: Digest,
        range: Range<u64>,
    ) -> Result<Bytes, ReadError> {
        self.objects.pack_range(database, pack, range).await
    }
}

impl Inventory for MemoryRepository {
    async fn timelines(&self, _: DatabaseId) -> Result<Vec<Timeline>, ReadError> {
        Ok(self.found(|findings| findings.timelines.clone()))
    }

    async fn segments(
        &self,
        _: DatabaseId,
        timeline: TimelineId,
        after: Option<TxId>,
    ) -> Result<Vec<SegmentEntry>, ReadError> {
        let mut entries = self.found(|findings| findings.segments.clone());
        entries.retain(|entry| entry.key.timeline == timeline);
        entries.retain(|entry| after.is_none_or(|after| entry.key.range.first() > after));
        self.listed.fetch_add(entries.len() as u64, Ordering::Relaxed);
        Ok(entries)
    }

    async fn logged_timelines(&self, _: DatabaseId) -> Result<Vec<TimelineId>, ReadError> {
        let logged = |findings: &Findings| -> BTreeSet<TimelineId> {
            findings.segments.iter().map(|entry| entry.key.timeline).collect()
        };
        Ok(self.found(logged).into_iter().collect())
    }

    async fn all_segments(&self, _: DatabaseId) -> Result<Vec<SegmentEntry>, ReadError> {
        Ok(self.found(|findings| findings.segments.clone()))
    }

    async fn bases(&self, _: DatabaseId) -> Result<Vec<BaseEntry>, ReadError> {
        Ok(self.found(|findings| findings.bases.clone()))
    }

    async fn seen(&self, _: DatabaseId) -> Result<Vec<Seen>, ReadError> {
        Ok(self.found(|findings| findings.seen.clone()))
    }

    async fn packs(&self, _: DatabaseId) -> Result<Vec<(Digest, u64)>, ReadError> {
        Ok(Vec::new())
    }
}

/// An order to restore a state of a world, with nobody to tell of it.
pub(crate) fn order<'a>(world: &World, target: Target, to: &'a Path, options: &'a Options) -> Order<'a> {
    static NEVER: LazyLock<Cancel> = LazyLock::new(Cancel::new);
    let (planned, progress) = (&|_: &RestorePlan| {}, Arc::new(|_| {}));
    Order { target, now: at(world.now), to, options, planned, progress, cancel: &NEVER }
}

/// A world in which the same transactions are in two segments of one range, in different parts, and the log goes on from
/// one of them: as after a put that was broken off, arrived all the same, and was made anew.
pub(crate) fn with_twins(seed: u64) -> World {
    let begin = |cut_between: bool| {
        let mut world = World::new(PageSize::MIN, 10);
        world.commit(10, &[(2, 1000 + seed)]);
        if cut_between {
            world.cut();
        }
        world.commit(10, &[(3, 2000 + seed)]);
        world.cut();
        world
    };
    let (broken_off, mut world) = (begin(false), begin(true));
    world.group(2);
    let twin = *broken_off.findings.segments.last().unwrap();
    world.objects.put(&twin.key, broken_off.objects.bytes(&twin.key.to_string()));
    world.findings.segments.push(twin);
    world.commit(12, &[(2, 3000 + seed)]);
    world.cut();
    world
}
