//! What the daemon measures, as Prometheus text.

use std::fmt::Write as _;

use everwhen_proto::v1;

use super::metric_names::{self as names, Behaviour, Metric};
use crate::wire;

/// Renders all metrics of a daemon.
pub(crate) fn render(status: &v1::GetStatusResponse) -> String {
    let mut page = Page::default();
    page.one(names::BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.one(names::DATABASES, &[], status.databases.len() as f64);
    let each = |value: fn(&v1::DatabaseStatus) -> f64| move |db: &v1::DatabaseStatus| Some(value(db));
    page.of_each(names::UNPROTECTED_SECONDS, status, each(|db| db.lag_ms as f64 / 1e3));
    page.of_each(names::DURABLE_TIME, status, |db| seconds(db.durable.as_ref()?.time.as_ref()?));
    page.of_each(names::TRANSACTIONS, status, each(|db| db.transactions_total as f64));
    page.of_each(names::SEGMENTS, status, each(|db| db.segments_total as f64));
    page.of_each(names::STORED_BYTES, status, each(|db| db.stored_bytes_total as f64));
    page.of_each(names::QUEUE_BYTES, status, each(|db| db.queue_bytes as f64));
    page.of_each(names::SPOOL_BYTES, status, each(|db| db.spool_bytes as f64));
    page.health(status);
    page.process(status);
    page.text
}

fn seconds(time: &prost_types::Timestamp) -> Option<f64> {
    Some(wire::time_in(time).as_micros() as f64 / 1e6)
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, metric: Metric) {
        let behaviour = match metric.behaviour {
            Behaviour::Gauge => "gauge",
            Behaviour::Counter => "counter",
        };
        let Metric { name, help, .. } = metric;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {behaviour}");
    }

    fn sample(&mut self, metric: Metric, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{labels} {value}", metric.name);
    }

    fn one(&mut self, metric: Metric, labels: &[(&str, &str)], value: f64) {
        self.head(metric);
        self.sample(metric, labels, value);
    }

    fn of_each(
        &mut self,
        metric: Metric,
        status: &v1::GetStatusResponse,
        value: impl Fn(&v1::DatabaseStatus) -> Option<f64>,
    ) {
        self.head(metric);
        for db in &status.databases {
            if let Some(value) = value(db) {
                self.sample(metric, &labels_of(db), value);
            }
        }
    }

    fn health(&mut self, status: &v1::GetStatusResponse) {
        self.head(names::HEALTH);
        for db in &status.databases {
            for (health, name) in [
                (v1::Health::Ok, "ok"),
                (v1::Health::Attention, "attention"),
                (v1::Health::Failing, "failing"),
            ] {
                let mut labels = labels_of(db);
                labels.push(("health", name));
                self.sample(names::HEALTH, &labels, f64::from(u8::from(db.health() == health)));
            }
        }
    }

    fn process(&mut self, status: &v1::GetStatusResponse) {
        if let Some(started) =
            status.daemon.as_ref().and_then(|daemon| daemon.started.as_ref()).and_then(seconds)
        {
            self.one(names::START_TIME, &[], started);
        }
        if let Some(bytes) = resident_bytes() {
            self.one(names::RESIDENT_BYTES, &[], bytes as f64);
        }
        if let Some(seconds) = cpu_seconds() {
            self.one(names::CPU_SECONDS, &[], seconds);
        }
    }
}

fn labels_of(db: &v1::DatabaseStatus) -> Vec<(&str, &str)> {
    let Some(database) = &db.database else { return Vec::new() };
    vec![("database", &database.name), ("id", &database.id)]
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Linux tells it in pages; elsewhere it is left out.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may hold anything; what follows is numbers.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_metrics() {
        let database = v1::Database { id: "ab".into(), name: "a\"b\n".into(), ..Default::default() };
        let status = v1::GetStatusResponse {
            databases: vec![v1::DatabaseStatus {
                database: Some(database),
                lag_ms: 1500,
                health: v1::Health::Attention.into(),
                ..Default::default()
            }],
            daemon: None,
        };
        let page = render(&status);
        assert!(
            page.contains("everwhen_unprotected_seconds{database=\"a\\\"b\\n\",id=\"ab\"} 1.5\n"),
            "{page}"
        );
        assert!(
            page.contains(",health=\"attention\"} 1\n") && page.contains(",health=\"ok\"} 0\n"),
            "{page}"
        );
        assert!(!page.contains("everwhen_durable_timestamp_seconds{"), "{page}");
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
        }
    }
}
