//! How small and how fast is the log: bytes a transaction, and MB/s of SQLite's log a core, both ways?

use everwhen_engine::segment::Effort;
use serde_json::json;

use crate::Outcome;
use crate::measure::{Clock, Sample};
use crate::prototype::prototype;
use crate::report::{Answer, Table};
use crate::stream::{Stream, replay};
use crate::workload::Workload;
use crate::world::World;

const PER_SEGMENT: [usize; 4] = [1, 10, 100, 1000];

/// Measures all workloads.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("encode", "Encoding the log");
    let mut sizes = Table::new(
        "Stored bytes, as a share of SQLite's log and per transaction, by transactions in a segment",
        &[
            "workload",
            "log",
            "transactions",
            "1",
            "10",
            "100",
            "1000",
            "1000, idle effort",
            "prototype, 100",
            "ours, times it",
        ],
    );
    let mut speeds = Table::new(
        "MB/s of SQLite's log on one core (processor time), 100 transactions a segment, median (range)",
        &[
            "workload",
            "encode, checked by decoding",
            "prototype, unchecked",
            "ours, times it",
            "with page hashes too",
            "of it transactions/s",
            "seconds a GB of log",
            "replay",
            "prototype",
            "ours, times it",
        ],
    );
    let clock = Clock::of_thread();
    for workload in Workload::ALL {
        let shrink = world.scale.pick(100, 4, 1);
        let folder = world.fresh("encode")?;
        let transactions = (workload.transactions() / shrink).max(2);
        let stream = Stream::record(&folder, workload, (workload.rows() / shrink).max(50), transactions)?;
        sizes.row(size(&stream, workload, clock, &mut answer)?);
        speeds.row(speed(world, &stream, workload, clock, &mut answer)?);
    }
    world.discard("encode")?;
    answer.table(sizes);
    answer.table(speeds);
    answer.note("What a daemon pays is \"with page hashes too\": the hashes read each page and its previous version first, so encoding alone finds them in the caches.");
    answer.note("Every frame is decompressed and compared when it is made; the replayed image is compared with the true one. The prototype's figures are of the study by which the format was chosen: workloads of the same kinds but not the same rows, on a like machine; the ratio of shares is more telling than that of bytes.");
    Ok(answer)
}

fn size(stream: &Stream, workload: Workload, clock: Clock, answer: &mut Answer) -> Outcome<Vec<String>> {
    let (raw, transactions) = (stream.raw_bytes() as f64, stream.commits.len());
    let prototype = prototype(workload);
    let mut row = vec![workload.name().to_owned(), format!("{:.0} MB", raw / 1e6), transactions.to_string()];
    let mut times = f64::NAN;
    for (per_segment, effort) in PER_SEGMENT
        .map(|per_segment| (per_segment, Effort::Hot))
        .into_iter()
        .chain([(1000, Effort::Thorough)])
    {
        let encoded = stream.encode(per_segment, effort, clock)?;
        let stored: usize = encoded.objects.iter().map(bytes::Bytes::len).sum();
        let percent = stored as f64 * 100.0 / raw;
        row.push(format!("{percent:.2} %, {:.0} B", stored as f64 / transactions as f64));
        if per_segment == 100 {
            times = percent / prototype.percent;
        }
        answer.raw(json!({
            "workload": workload.name(), "raw_bytes": raw, "transactions": transactions,
            "per_segment": per_segment, "effort": format!("{effort:?}"), "stored_bytes": stored,
            "encode_s": encoded.encode_s, "hash_s": encoded.hash_s,
        }));
    }
    row.extend([
        format!("{:.2} %, {:.0} B", prototype.percent, prototype.bytes_per_tx),
        format!("{times:.2}"),
    ]);
    Ok(row)
}

fn speed(
    world: &World,
    stream: &Stream,
    workload: Workload,
    clock: Clock,
    answer: &mut Answer,
) -> Outcome<Vec<String>> {
    let raw = stream.raw_bytes() as f64 / 1e6;
    let (mut encode, mut hashed, mut back) = (Sample::default(), Sample::default(), Sample::default());
    for _ in 0..world.scale.pick(1, 3, 5) {
        let encoded = stream.encode(100, Effort::Hot, clock)?;
        let mut image = stream.start.clone();
        let replay_s = replay(&encoded.objects, &mut image, clock)?;
        if encoded.end.as_ref() != Some(&image) {
            return Err(format!("{}: the replayed image is not the true one", workload.name()).into());
        }
        encode.push(raw / encoded.encode_s);
        hashed.push(raw / (encoded.encode_s + encoded.hash_s));
        back.push(raw / replay_s);
    }
    answer.raw(json!({
        "workload": workload.name(), "encode_mb_s": encode.values(), "encode_and_hash_mb_s": hashed.values(),
        "replay_mb_s": back.values(),
    }));
    let text = |sample: &Sample| sample.with_spread(|value| format!("{value:.0}"));
    let prototype = prototype(workload);
    let beside =
        |sample: &Sample, of: f64| [text(sample), format!("{of:.0}"), format!("{:.2}", sample.median() / of)];
    let mut row = vec![workload.name().to_owned()];
    row.extend(beside(&encode, prototype.encode_mb_s));
    row.push(text(&hashed));
    row.push(format!("{:.0}", stream.commits.len() as f64 * hashed.median() / raw));
    row.push(format!("{:.2}", 1000.0 / hashed.median()));
    row.extend(beside(&back, prototype.replay_mb_s));
    Ok(row)
}
