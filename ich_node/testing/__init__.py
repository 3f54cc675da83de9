"""Shipped builders for tests and demonstrations: a head phantom, DICOM series of it, a PACS and a modality.

Nothing here imports a test framework, so that an installation can try itself out.
"""
