//! What the policy verbs print.

use serde_json::Value;

use crate::cli::look::percent;
use crate::cli::table::{Align, Sheet, age, bytes};
use crate::view::{
    Applied, ConflictView, DocumentDiff, EffectiveView, FieldChangeView, FieldSourceView, PlanView, PolicyView,
    RevisionView, SyncStatus,
};

pub(in crate::cli) fn applied_text(applied: &Applied) -> String {
    let mut text = String::new();
    for document in &applied.documents {
        let etag = if document.etag.is_empty() { String::new() } else { format!("  etag {}", document.etag) };
        text.push_str(&format!("{} {}/{}/{}{etag}\n", document.change, document.scope, document.kind, document.name));
    }
    match (applied.dot.as_str(), applied.replayed) {
        ("", _) => text.push_str(&format!("nothing to write, policy root {}\n", applied.root)),
        (dot, true) => text.push_str(&format!("stored earlier as {dot}, policy root {}\n", applied.root)),
        (dot, false) => text.push_str(&format!("stored as {dot}, policy root {}\n", applied.root)),
    }
    if let Some(replicated) = &applied.replicated_to {
        let nodes = if replicated.nodes.is_empty() { "nobody yet".to_owned() } else { replicated.nodes.join(", ") };
        let verdict = if replicated.is_reached() { "" } else { "; not in time, it goes on spreading" };
        text.push_str(&format!(
            "on disk at {nodes}: {} of {} wanted{verdict}\n",
            replicated.nodes.len(),
            replicated.wanted
        ));
    }
    text
}

pub(in crate::cli) fn policies_text(policies: &[PolicyView], width: Option<u16>) -> String {
    if policies.is_empty() {
        return "no documents; defaults are in force\n".to_owned();
    }
    let columns = [
        ("SCOPE", Align::Left),
        ("KIND", Align::Left),
        ("NAME", Align::Left),
        ("STATE", Align::Left),
        ("WRITTEN BY", Align::Left),
        ("AT", Align::Left),
        // Long and rarely read: `policy get` shows it too.
        ("ETAG", Align::Left),
    ];
    let shown = if width.is_some() { columns.len() - 1 } else { columns.len() };
    let mut sheet = Sheet::new(columns.get(..shown).unwrap_or(&columns), width);
    for policy in policies {
        sheet.row(&[
            policy.scope.as_str(),
            &policy.kind,
            &policy.name,
            &state(policy),
            &policy.author,
            &moment(policy.written_ms),
            &policy.etag,
        ]);
    }
    sheet.render()
}

fn state(policy: &PolicyView) -> String {
    let mut words = Vec::new();
    if !policy.conflicts.is_empty() {
        words.push(format!("conflict in {}", policy.conflicts.join(", ")));
    }
    if policy.deleted_concurrently {
        words.push("deleted elsewhere meanwhile".to_owned());
    }
    if policy.expired {
        words.push("expired".to_owned());
    }
    if words.is_empty() { "ok".to_owned() } else { words.join("; ") }
}

pub(in crate::cli) fn history_text(revisions: &[RevisionView], width: Option<u16>) -> String {
    if revisions.is_empty() {
        return "nothing is remembered of it here\n".to_owned();
    }
    let columns = [
        ("AT", Align::Left),
        ("BY", Align::Left),
        ("WHAT", Align::Left),
        ("SECTIONS", Align::Left),
        ("WHY", Align::Left),
        ("DOT", Align::Left),
    ];
    let mut sheet = Sheet::new(&columns, width);
    for revision in revisions {
        let live = if revision.live { " *" } else { "" };
        sheet.row(&[
            moment(revision.written_ms).as_str(),
            &revision.author,
            &format!("{}{live}", revision.op),
            &if revision.deleted { "all".to_owned() } else { revision.sections.join(", ") },
            &revision.message,
            &revision.dot,
        ]);
    }
    sheet.render() + "* in force; to go back: `marram policy rollback DOC --to DOT`\n"
}

pub(in crate::cli) fn conflicts_text(conflicts: &[ConflictView]) -> String {
    if conflicts.is_empty() {
        return "no conflicts\n".to_owned();
    }
    let mut text = String::new();
    for conflict in conflicts {
        let what = match conflict.section.as_str() {
            "" => "deleted while it was edited".to_owned(),
            section => format!("section {section}"),
        };
        text.push_str(&format!("{}/{}/{}  {what}\n", conflict.scope, conflict.kind, conflict.name));
        for side in &conflict.sides {
            let mark = if side.in_force { "in force" } else { "        " };
            let at = if side.written_ms == 0 { "some time ago".to_owned() } else { moment(side.written_ms) };
            let deleted = if side.deleted { "  deleted it" } else { "" };
            let why = if side.message.is_empty() { String::new() } else { format!("  \"{}\"", side.message) };
            text.push_str(&format!("  {mark}  {}  {at}  ({}){deleted}{why}\n", side.author, side.dot));
            if conflict.changes.is_empty() && !side.deleted {
                text.push_str(&format!("            {}\n", side.value));
            }
        }
        if !conflict.changes.is_empty() {
            text.push_str(&three_ways(conflict));
        }
    }
    text.push_str(
        "to settle one: `marram policy resolve SCOPE/KIND/NAME --take DOT`, or -f with the document as you want it\n",
    );
    text
}

/// One line per field: what it was, and what it is on each side.
fn three_ways(conflict: &ConflictView) -> String {
    let headings: Vec<String> = conflict.sides.iter().map(|side| side.author.clone()).collect();
    let mut columns = vec![("FIELD", Align::Left), ("BEFORE", Align::Left)];
    columns.extend(headings.iter().map(|heading| (heading.as_str(), Align::Left)));
    let mut sheet = Sheet::new(&columns, None);
    for change in &conflict.changes {
        let mut cells = vec![change.path.clone(), shown(change.base.as_ref())];
        cells.extend(change.sides.iter().map(|side| shown(side.as_ref())));
        sheet.row(&cells);
    }
    sheet.render().lines().map(|line| format!("    {line}\n")).collect()
}

pub(in crate::cli) fn diffs_text(diffs: &[DocumentDiff]) -> String {
    let mut text = String::new();
    for diff in diffs {
        text.push_str(&format!("{} {}/{}/{}\n", diff.change, diff.scope, diff.kind, diff.name));
        if diff.change != "created" {
            text.extend(diff.changes.iter().map(change_line));
        }
    }
    text
}

fn change_line(change: &FieldChangeView) -> String {
    let (before, after) = (shown(change.before.as_ref()), shown(change.after.as_ref()));
    format!("  {}: {before} → {after}\n", change.path)
}

pub(in crate::cli) fn plan_text(plan: &PlanView) -> String {
    let mut text = diffs_text(&plan.documents);
    for note in &plan.notes {
        let hint = note.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        text.push_str(&format!("note {}: {}{hint}\n", note.field, note.message));
    }
    if plan.impact.services.is_empty() {
        text.push_str("touches no service\n");
    }
    for touched in &plan.impact.services {
        text.push_str(&format!(
            "touches {}: {} at {}; {} of this node's requests of the last minute\n",
            touched.service,
            touched.what.join(", "),
            touched.nodes.join(", "),
            percent(touched.traffic_share)
        ));
    }
    text.push_str("dry run: nothing was stored\n");
    text
}

pub(in crate::cli) fn effective_text(effective: &EffectiveView, width: Option<u16>) -> String {
    let place = [&effective.region, &effective.zone].map(String::as_str).join("/");
    let place = place.trim_matches('/');
    let place = if place.is_empty() { String::new() } else { format!(" ({place})") };
    let mut text = format!("SERVICE {}  at {}{place}\n", effective.service, effective.node);
    if effective.kinds.is_empty() {
        text.push_str("no document is about it; defaults are in force\n");
        return text;
    }
    let columns = [("FIELD", Align::Left), ("VALUE", Align::Left), ("FROM", Align::Left), ("INSTEAD OF", Align::Left)];
    for kind in &effective.kinds {
        text.push_str(&format!("{}\n", kind.kind));
        let mut sheet = Sheet::new(&columns, width);
        for field in &kind.fields {
            sheet.row(&[field.path.as_str(), &field.value.to_string(), &origin(field), &instead_of(field)]);
        }
        text.push_str(&sheet.render());
    }
    text
}

fn origin(field: &FieldSourceView) -> String {
    match &field.locked_by {
        Some(lock) if *lock == field.document => format!("{} (locked)", field.document),
        Some(lock) => format!("{} (locked by {lock})", field.document),
        None => field.document.clone(),
    }
}

fn instead_of(field: &FieldSourceView) -> String {
    let each = field.overridden.iter().map(|over| format!("{} of {}: {}", over.value, over.document, over.why));
    each.collect::<Vec<_>>().join("; ")
}

pub(in crate::cli) fn sync_text(status: &SyncStatus, width: Option<u16>) -> String {
    let counters = &status.counters;
    let refused: u64 = counters.refused.values().sum();
    let mut text = format!(
        "root     {}, {} documents, {} in conflict, {} deletions remembered, {}\n\
         store    {} ({} writes), {} origins, {} gaps, context {}, floor {}\n\
         counts   {} written, {} merged, {} duplicates, {refused} refused, {} claims pending, {} applied\n",
        status.root,
        status.documents,
        status.conflicts,
        status.tombstones,
        bytes(u64::try_from(status.live_bytes).unwrap_or(u64::MAX)),
        status.incarnation,
        status.counter,
        status.origins,
        status.gaps,
        status.context_hash,
        status.floor_hash,
        counters.written,
        counters.merged,
        counters.duplicates,
        counters.claims_pending,
        counters.claims_applied,
    );
    for (reason, count) in &counters.refused {
        text.push_str(&format!("refused  {count} for {reason}\n"));
    }
    if counters.equivocations > 0 {
        text.push_str(&format!(
            "problem  {} writes under a stamp that was used: see `marram status`\n",
            counters.equivocations
        ));
    }
    if status.peers.is_empty() {
        text.push_str("no other node is known\n");
        return text;
    }
    let columns = [
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("POLICY", Align::Left),
        ("CONFIRMED", Align::Right),
        ("BEHIND", Align::Right),
    ];
    let mut sheet = Sheet::new(&columns, width);
    for peer in &status.peers {
        sheet.row(&[
            peer.node.as_str(),
            &peer.state,
            if peer.root_equal { "equal" } else { "differs" },
            &peer.last_sync_s.map_or_else(|| "-".to_owned(), |seconds| format!("{} ago", age(seconds))),
            &peer.lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
        ]);
    }
    text + &sheet.render()
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "-".to_owned(), Value::to_string)
}

pub(super) fn moment(unix_ms: u64) -> String {
    let at = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| unix_ms.to_string(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}
