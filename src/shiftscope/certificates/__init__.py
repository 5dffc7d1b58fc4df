"""Certificates: for every image the largest radius within which *every* shift keeps the model's answer, found by trying them."""

from __future__ import annotations

from shiftscope.certificates.certificate import Certificate
from shiftscope.certificates.certifying import certify

__all__ = ["Certificate", "certify"]
