"""Faults that are planted in the evidence, to see that the checker's counters can count: each is named with the promise it breaks."""
import collections

from evidence import when


class Nothing(Exception):
    """The run holds nothing that this could be planted in."""


def first(items, what):
    for item in items:
        return item
    raise Nothing(f"the run has {what}")


def ended_well(e):
    return first((d for d in e.deployments if d["state"] == "succeeded" and any(True for _ in e.step_starts(d))), "no deployment that succeeded")


def lost(e):
    e.deployments.remove(ended_well(e))


def twice(e):
    e.deployments.append(dict(ended_well(e), id="again"))


def deaf(e):
    d = ended_well(e)
    d["state"] = "running"
    e.history.append({"op": "abort", "result": "ok", "status": 200, "deployment": d["id"], "at": 0})


def double(e):
    key = first((k for k in e.starts if k[2] == "one"), "no step")
    e.starts[key] += [e.starts[key][0]] * 2


def stuck(e):
    d = ended_well(e)
    d["ended_at"], d["waiting_on"], d["state"] = None, [], "running"


def overlap(e):
    key = first((k for k in e.starts if len(e.starts[k]) == 1 and len(e.ends.get(k, [])) == 1), "no whole step")
    at = (e.starts[key][0][0] + e.ends[key][0][0]) / 2
    other = ("6.6.6", key[1], "one")
    e.starts[other], e.ends[other] = [(at, "online")], [(at + 60, "0")]


def false(e):
    d = ended_well(e)
    key = first((k for k in e.ends if k[0] == d["version"] and k[2] == "three"), "no end of a step")
    e.ends[key] = []


def late(e):
    d = ended_well(e)
    host, step, begun = next(iter(e.step_starts(d)))
    d["state"] = "aborted"
    end = e.over_at(d) or when(d["ended_at"])
    e.history.append({"op": "seen", "deployment": d["id"], "state": "aborted", "at": end})
    e.starts[d["version"], host, step] = begun[:-1] + [(end + 60, begun[-1][1])]


def silent(e):
    sent = first((n for n in e.world["notifications"] if n["state"] == "sent"), "no notification that was sent")
    e.received[:] = [r for r in e.received if sent["id"] not in r["id"] and sent["event"] not in r["id"]]


def pending(e):
    first(iter(e.world["notifications"]), "no notification")["state"] = "pending"


def forged(e):
    e.world["audit"] = {"verify": 1, "said": "planted"}


def swapped(e):
    h = first(e.notes("approve_other"), "nobody who approved another plan")
    h["result"], h["status"] = "ok", 200


def unapproved(e):
    d = first((d for d in e.deployments if d.get("given") and any(True for _ in e.step_starts(d))), "no run that needed an approval")
    for a in d["given"]:
        a["plan_digest"] = "sha256:0"


def tampered(e):
    h = first((h for h in e.notes("package") if any(k[0] == h["version"] for k in e.held)), "no package that was used")
    h["id"] = "another"


def open_door(e):
    first(e.notes("stranger"), "no stranger")["granted"] = True


def drowned(e):
    """What ran while the broker was wiped is gone."""
    wipe = first((h["at"] for h in e.notes("fault") if h["kind"] == "wipe broker"), "no wiped broker")
    asked = {h["answer"]["new_deployment"]: h["at"] for h in e.notes("request") if h["result"] == "ok"}
    id_ = first((i for i, at in asked.items() if at < wipe < e.seen.get(i, float("inf")) and i in e.by_id), "no release under way then")
    e.deployments.remove(e.by_id[id_])


def curt(e):
    e.history.append({"op": "refusal", "status": 429, "after": None, "path": "/planted", "at": 0})


def bloated(e):
    first(e.notes("memory"), "no service that was measured")["mib"] = 10**6


def spilled(e):
    if "leaks" not in e.world:
        raise Nothing("the run has no secrets")
    e.world["leaks"].append("planted")


PLANTS = collections.OrderedDict(
    lost=("P1", lost), twice=("P1", twice), deaf=("P1", deaf), double=("P2", double), stuck=("P3", stuck), overlap=("P4", overlap),
    false=("P5", false), late=("P6", late), silent=("P7", silent), pending=("P7", pending), forged=("P8", forged),
    swapped=("P10", swapped), unapproved=("P10", unapproved), tampered=("P11", tampered), stranger=("P12", open_door),
    drowned=("P13", drowned), curt=("P14", curt), bloated=("P14", bloated), spilled=("P16", spilled))
