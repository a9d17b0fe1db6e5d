//! Line plots as SVG: enough for scaling curves, and nothing to install.

use std::fmt::Write as _;

use crate::measure::Sample;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 178.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;
const INK: &str = "#1f2328";
const FAINT: &str = "#59636e";
/// Told apart by all eyes, after Okabe and Ito. The first two are those of the two daemons.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// One line of a plot.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// What it shows. A daemon's lines begin with its name and have its colour.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
    /// Where the rounds behind a point lie apart: at which place, from where to where.
    ranges: Vec<(f64, [f64; 2])>,
    /// Drawn in dashes, as the lesser of two lines of one thing.
    pub dashed: bool,
}

impl Line {
    /// A line without points.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// With these points.
    #[must_use]
    pub fn through(mut self, points: Vec<(f64, f64)>) -> Self {
        self.points = points;
        self
    }

    /// One more point: the median of some rounds, with their range, each divided by `unit`.
    pub fn push(&mut self, at: f64, rounds: &Sample, unit: f64) {
        self.points.push((at, rounds.median() / unit));
        if rounds.len() > 1 {
            self.ranges.push((at, [rounds.quantile(0.0) / unit, rounds.quantile(1.0) / unit]));
        }
    }

    /// In dashes.
    #[must_use]
    pub fn dashed(mut self) -> Self {
        self.dashed = true;
        self
    }
}

/// One axis: what it measures, with its unit, and how it is divided.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    label: &'static str,
    log: bool,
}

impl Axis {
    /// From 0, in even steps.
    #[must_use]
    pub fn even(label: &'static str) -> Self {
        Self { label, log: false }
    }

    /// By powers of ten. Values that are not above 0 are left out.
    #[must_use]
    pub fn log(label: &'static str) -> Self {
        Self { label, log: true }
    }
}

/// A plot of some lines.
#[derive(Clone, Debug)]
pub struct Plot {
    /// What it is about.
    pub title: &'static str,
    /// To the right.
    pub across: Axis,
    /// Upwards.
    pub up: Axis,
    /// What it shows.
    pub lines: Vec<Line>,
}

impl Plot {
    /// Draws it.
    #[must_use]
    pub fn svg(&self) -> String {
        let lines: Vec<(&Line, Vec<(f64, f64)>)> =
            self.lines.iter().map(|line| (line, self.drawable(line))).collect();
        let all = || lines.iter().flat_map(|(line, points)| points.iter().copied().chain(self.ends(line)));
        let across = Ruler::over(self.across.log, all().map(|at| at.0)).cut_at_data(all().map(|at| at.0));
        let up = Ruler::over(self.up.log, all().map(|at| at.1));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
            escaped(self.title)
        );
        self.grid(&mut svg, &across, &up);
        for (index, (line, points)) in lines.iter().enumerate() {
            let points: Vec<(f64, f64)> =
                points.iter().map(|at| (right(&across, at.0), high(&up, at.1))).collect();
            for (at, range) in &line.ranges {
                let ends = range.map(|value| (right(&across, *at), high(&up, value)));
                draw_range(&mut svg, ends, colour(&line.name, index));
            }
            draw(&mut svg, line, &points, colour(&line.name, index), index);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn drawable(&self, line: &Line) -> Vec<(f64, f64)> {
        line.points.iter().copied().filter(|at| self.fits(*at)).collect()
    }

    fn fits(&self, at: (f64, f64)) -> bool {
        let fits = |value: f64, axis: Axis| value.is_finite() && (!axis.log || value > 0.0);
        fits(at.0, self.across) && fits(at.1, self.up)
    }

    /// Both ends of a line's ranges.
    fn ends<'a>(&'a self, line: &'a Line) -> impl Iterator<Item = (f64, f64)> + Clone + 'a {
        let ends = line.ranges.iter().flat_map(|(at, range)| range.map(|value| (*at, value)));
        ends.filter(|at| self.fits(*at))
    }

    fn grid(&self, svg: &mut String, across: &Ruler, up: &Ruler) {
        let (end, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in up.ticks() {
            let y = high(up, tick);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{end}\" stroke=\"#e4e8ec\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{FAINT}\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                short(tick)
            );
        }
        for tick in across.ticks() {
            let x = right(across, tick);
            let _ = writeln!(
                svg,
                "<path d=\"M{x:.1} {floor}v5\" stroke=\"{FAINT}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{FAINT}\">{}</text>",
                floor + 19.0,
                short(tick)
            );
        }
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {floor}H{end}\" stroke=\"{FAINT}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + end) / 2.0,
            HEIGHT - 10.0,
            escaped(self.across.label),
            (TOP + floor) / 2.0,
            escaped(self.up.label)
        );
    }
}

/// A line, a dot at each of its points when they are few, and its entry at the right.
fn draw(svg: &mut String, line: &Line, points: &[(f64, f64)], colour: &str, index: usize) {
    let dashes = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    let path: Vec<String> = points.iter().map(|at| format!("{:.1},{:.1}", at.0, at.1)).collect();
    let stroke = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}");
    let _ = writeln!(svg, "<polyline points=\"{}\" {stroke} stroke-linejoin=\"round\"/>", path.join(" "));
    for at in points.iter().filter(|_| points.len() <= 24) {
        let _ = write!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>", at.0, at.1);
    }
    let (x, y) = (WIDTH - RIGHT + 16.0, TOP + 10.0 + 20.0 * index as f64);
    let _ = writeln!(
        svg,
        "<path d=\"M{x} {y}h22\" {stroke}/><text x=\"{}\" y=\"{}\">{}</text>",
        x + 28.0,
        y + 4.0,
        escaped(&line.name)
    );
}

/// From the lowest to the highest of some rounds.
fn draw_range(svg: &mut String, [from, to]: [(f64, f64); 2], colour: &str) {
    let _ = writeln!(
        svg,
        "<path d=\"M{x:.1} {:.1}V{:.1}M{left:.1} {:.1}h8M{left:.1} {:.1}h8\" stroke=\"{colour}\" stroke-opacity=\"0.6\"/>",
        from.1,
        to.1,
        from.1,
        to.1,
        x = from.0,
        left = from.0 - 4.0,
    );
}

fn colour(name: &str, index: usize) -> &'static str {
    match name.split([' ', ',']).next() {
        Some("everwhen") => COLOURS[0],
        Some("litestream") => COLOURS[1],
        Some("cp") => FAINT,
        _ => COLOURS[index % COLOURS.len()],
    }
}

fn right(ruler: &Ruler, value: f64) -> f64 {
    LEFT + ruler.share(value) * (WIDTH - LEFT - RIGHT)
}

fn high(ruler: &Ruler, value: f64) -> f64 {
    HEIGHT - BOTTOM - ruler.share(value) * (HEIGHT - BOTTOM - TOP)
}

/// Where values lie on an axis.
struct Ruler {
    low: f64,
    high: f64,
    step: f64,
    log: bool,
}

impl Ruler {
    /// One that all values fit on, with round ends.
    fn over(log: bool, values: impl Iterator<Item = f64> + Clone) -> Self {
        let (least, most) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
        if !least.is_finite() || most <= 0.0 {
            return Self { low: if log { 0.1 } else { 0.0 }, high: 1.0, step: 0.25, log };
        }
        if log {
            // So wide that only powers of ten are marked: then it ends at two of them.
            let wide = most / least > 1000.0;
            let (low, high) = match wide {
                true => (10_f64.powf(least.log10().floor()), 10_f64.powf(most.log10().ceil())),
                false => (round_below(least), round_above(most)),
            };
            return Self { low, high: if high > low { high } else { low * 10.0 }, step: 0.0, log };
        }
        let rough = most / 5.0;
        let unit = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .map(|step| step * unit)
            .into_iter()
            .find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(10.0 * unit);
        Self { low: 0.0, high: (most / step * 0.999).ceil() * step, step, log }
    }

    /// An even axis that ends where the data does, not at the next mark.
    fn cut_at_data(mut self, values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(0.0, f64::max);
        if !self.log && most > 0.0 {
            self.high = most;
        }
        self
    }

    fn share(&self, value: f64) -> f64 {
        match self.log {
            true => (value / self.low).log10() / (self.high / self.low).log10(),
            false => (value - self.low) / (self.high - self.low),
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.log {
            let count = ((self.high - self.low) / self.step * 1.001).floor() as u32;
            return (0..=count).map(|index| self.low + f64::from(index) * self.step).collect();
        }
        let decades = (self.high / self.low).log10();
        let within: &[f64] = if decades > 3.9 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let first = self.low.log10().floor() as i32;
        let all = (first..=first + decades.ceil() as i32 + 1)
            .flat_map(|power| within.iter().map(move |step| step * 10_f64.powi(power)));
        all.filter(|tick| *tick >= self.low * 0.999 && *tick <= self.high * 1.001).collect()
    }
}

/// The next of 1, 2, 5 times a power of ten down.
fn round_below(value: f64) -> f64 {
    let unit = 10_f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0].map(|step| step * unit).into_iter().find(|end| *end <= value * 1.001).unwrap_or(unit)
}

/// The next of 1, 2, 5 times a power of ten up.
fn round_above(value: f64) -> f64 {
    let unit = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|step| step * unit)
        .into_iter()
        .find(|end| *end >= value * 0.999)
        .unwrap_or(10.0 * unit)
}

fn short(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.3}");
    format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_values() {
        for (most, high, ticks) in [(0.93, 1.0, 6), (101.0, 125.0, 6), (7.0, 8.0, 5), (2048.0, 2500.0, 6)] {
            let ruler = Ruler::over(false, [most].into_iter());
            assert!((ruler.high - high).abs() < 1e-9, "{most}: {}", ruler.high);
            assert_eq!(ruler.ticks().len(), ticks, "{most}");
        }
        let ruler = Ruler::over(true, [0.3, 40.0].into_iter());
        assert_eq!(
            ruler.ticks().iter().map(|tick| short(*tick)).collect::<Vec<_>>().join(" "),
            "0.2 0.5 1 2 5 10 20 50"
        );
    }

    #[test]
    fn an_axis_may_end_between_two_marks() {
        let ruler = Ruler::over(false, [60.5].into_iter()).cut_at_data([60.5].into_iter());
        assert!((ruler.high - 60.5).abs() < 1e-9);
        assert_eq!(ruler.ticks(), [0.0, 20.0, 40.0, 60.0]);
    }

    #[test]
    fn a_range_is_drawn_and_has_room() {
        let mut line = Line::new("everwhen");
        line.push(1.0, &[1.0, 2.0, 30.0].into_iter().collect(), 1.0);
        let axis = Axis::even("seconds");
        let svg = Plot { title: "t", across: axis, up: axis, lines: vec![line] }.svg();
        assert_eq!(svg.matches("stroke-opacity").count(), 1);
        assert!(svg.contains(">30<"));
    }

    #[test]
    fn values_that_cannot_be_drawn_are_left_out() {
        let line = Line::new("everwhen <1>").through(vec![(1.0, f64::NAN), (0.0, 2.0), (10.0, 3.0)]);
        let axis = Axis::log("seconds");
        let svg = Plot { title: "t", across: axis, up: axis, lines: vec![line] }.svg();
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("everwhen &lt;1>") && !svg.contains("NaN"));
        assert!(Plot { title: "t", across: axis, up: axis, lines: Vec::new() }.svg().ends_with("</svg>\n"));
    }
}
