"""Audits of models from files on images from files, in blocks that can be stopped, shared out and put together."""

from __future__ import annotations

from shiftscope.auditing.jobs import AuditJob, AuditPlan, AuditSpec, complete, is_audit, merged, run_audit, run_shard, run_shards

__all__ = ["AuditJob", "AuditPlan", "AuditSpec", "complete", "is_audit", "merged", "run_audit", "run_shard", "run_shards"]
