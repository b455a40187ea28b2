"""Writes what came out for each host as JSON into the file that WINDLASS_REPORT names."""

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: windlass_report
type: aggregate
short_description: what came out for each host, as JSON
description: Writes one JSON object with a summary of each host.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "windlass_report"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.reasons = {}

    def _reason(self, result):
        values = result._result
        reason = values.get("msg") or values.get("stderr") or "no reason given"
        self.reasons[result._host.get_name()] = f"{result._task.get_name()}: {reason}"[:500]

    def v2_runner_on_failed(self, result, ignore_errors=False):
        if not ignore_errors:
            self._reason(result)

    def v2_runner_on_unreachable(self, result):
        self._reason(result)

    def v2_playbook_on_stats(self, stats):
        hosts = {}
        for host in sorted(stats.processed):
            hosts[host] = dict(stats.summarize(host), reason=self.reasons.get(host))
        with open(os.environ["WINDLASS_REPORT"], "w", encoding="utf-8") as out:
            json.dump(hosts, out)
