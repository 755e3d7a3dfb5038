//! Requests per second of every pair and workload, as a picture.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::table::Row;
use super::{Layer, Workload};

const WIDTH: u32 = 1200;
const ROW_HEIGHT: u32 = 22;
const HEAD_HEIGHT: u32 = 50;
const LABEL_WIDTH: u32 = 210;

/// Draws horizontal bars, one panel for each workload, each scaled to its fastest pair without `direct`.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw(path: &Path, workloads: &[Workload], all: &[Vec<Row>]) -> anyhow::Result<()> {
    let rows = all.first().map_or(0, Vec::len).saturating_sub(1);
    let panel = HEAD_HEIGHT + ROW_HEIGHT * u32::try_from(rows)?;
    let panels = u32::try_from(workloads.len())?;
    let failed = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", path.display());
    let area = SVGBackend::new(path, (WIDTH, panel * panels.div_ceil(2))).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    for ((place, workload), rows) in
        area.split_evenly((usize::try_from(panels.div_ceil(2))?, 2)).iter().zip(workloads).zip(all)
    {
        bars(place, workload, rows).map_err(|error| failed(&error))?;
    }
    area.present().map_err(|error| failed(&error))
}

fn bars<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    workload: &Workload,
    rows: &[Row],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(format!("{}: requests/s", workload.name), (10, 14), text(16)))?;
    let pairs: Vec<&Row> = rows.iter().filter(|row| row.layer != Layer::None).collect();
    let most = pairs.iter().map(|row| row.per_second()).fold(f64::MIN_POSITIVE, f64::max);
    let (width, _) = area.dim_in_pixel();
    let full = f64::from(width.saturating_sub(LABEL_WIDTH + 80));
    for (at, row) in (0_i32..).zip(pairs) {
        let top = HEAD_HEIGHT.cast_signed() - 8 + at * ROW_HEIGHT.cast_signed();
        let left = LABEL_WIDTH.cast_signed();
        #[expect(clippy::cast_possible_truncation, reason = "at most the width of the picture")]
        let end = left + (full * row.per_second() / most).round() as i32;
        let color = if row.name.starts_with("marram") { GREEN.mix(0.7) } else { BLUE.mix(0.4) };
        area.draw(&Text::new(row.name.clone(), (10, top + 2), text(13)))?;
        area.draw(&Rectangle::new([(left, top), (end, top + ROW_HEIGHT.cast_signed() - 6)], color.filled()))?;
        area.draw(&Text::new(format!("{:.0}", row.per_second()), (end + 5, top + 2), text(13)))?;
    }
    Ok(())
}
