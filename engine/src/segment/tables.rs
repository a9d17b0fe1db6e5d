//! The lists of a part while it is encoded: transactions, page versions, frames.

use crate::ids::TxId;
use crate::page::{PageNo, StateChecksum};
use crate::segment::FrameCodec;
use crate::time::Timestamp;
use crate::transaction::{Transaction, TxFlags};
use crate::wire::{put_signed_varint, put_varint, zigzag};

/// What the lists know of the transactions they hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: TxId,
    pub(super) last: TxId,
    pub(super) count: u32,
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) flags: TxFlags,
    image_pages: u32,
}

/// Where the lists of versions and frames were, to go back to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TablesMark {
    versions_len: usize,
    versions: u32,
    page: u32,
    frames_len: usize,
    crcs_len: usize,
}

/// The lists in their encoded form, so that a transaction of millions of pages costs a byte or two a page.
#[derive(Debug, Default)]
pub(super) struct TableBuilder {
    pub(super) span: Option<Span>,
    transactions: Vec<u8>,
    states: Vec<u8>,
    versions: Vec<u8>,
    version_count: u32,
    last_page: u32,
    frames: Vec<u8>,
    crcs: Vec<u8>,
}

impl TableBuilder {
    pub(super) fn mark(&self) -> TablesMark {
        TablesMark {
            versions_len: self.versions.len(),
            versions: self.version_count,
            page: self.last_page,
            frames_len: self.frames.len(),
            crcs_len: self.crcs.len(),
        }
    }

    pub(super) fn go_back(&mut self, mark: TablesMark) {
        self.versions.truncate(mark.versions_len);
        self.version_count = mark.versions;
        self.last_page = mark.page;
        self.frames.truncate(mark.frames_len);
        self.crcs.truncate(mark.crcs_len);
    }

    pub(super) fn versions(&self) -> u32 {
        self.version_count
    }

    pub(super) fn frames(&self) -> u32 {
        (self.crcs.len() / 4) as u32
    }

    /// Bytes of the lists before compression.
    pub(super) fn lists_len(&self) -> usize {
        self.transactions.len() + self.versions.len() + self.frames.len()
    }

    /// Bytes of the lists and what follows them.
    pub(super) fn len(&self) -> usize {
        self.lists_len() + self.states.len() + self.crcs.len()
    }

    pub(super) fn version(&mut self, page: PageNo, has_previous: bool) {
        let step = zigzag(i64::from(page.get()) - i64::from(self.last_page));
        put_varint(&mut self.versions, step << 1 | u64::from(has_previous));
        self.last_page = page.get();
        self.version_count += 1;
    }

    pub(super) fn frame(&mut self, images: u32, codec: FrameCodec, len: u64, crc: u32) {
        put_varint(&mut self.frames, u64::from(images) << 1 | u64::from(codec == FrameCodec::Zstd));
        put_varint(&mut self.frames, len);
        self.crcs.extend(crc.to_le_bytes());
    }

    pub(super) fn transaction(&mut self, tx: &Transaction) {
        let (time, image_pages) = self.span.map_or((tx.not_before, 0), |span| (span.to, span.image_pages));
        put_varint(&mut self.transactions, tx.pages.into());
        put_signed_varint(&mut self.transactions, i64::from(tx.image_pages) - i64::from(image_pages));
        put_varint(&mut self.transactions, tx.time.micros_since(time).cast_unsigned());
        self.states.extend(StateChecksum::get(tx.state).to_le_bytes());
        let start = Span {
            first: tx.tx,
            last: tx.tx,
            count: 0,
            from: tx.not_before,
            to: tx.time,
            flags: tx.flags,
            image_pages: 0,
        };
        let span = self.span.get_or_insert(start);
        span.last = tx.tx;
        span.count += 1;
        span.to = tx.time;
        span.image_pages = tx.image_pages;
    }

    pub(super) fn lists(&self) -> Vec<u8> {
        [&self.transactions[..], &self.versions, &self.frames].concat()
    }

    pub(super) fn states_and_crcs(&self) -> [&[u8]; 2] {
        [&self.states, &self.crcs]
    }
}
