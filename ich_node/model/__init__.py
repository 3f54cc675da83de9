"""The published networks, and what turns Hounsfield units into findings.

Arrays in, findings out: nothing here knows DICOM, a queue or a database. `bundle` loads no torch; `predict`
does.
"""
