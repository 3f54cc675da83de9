"""Studies, series, instances, readings, result objects, outbox, audit"""

import sqlalchemy as sa
from alembic import op

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


WORKLIST_V1 = """
CREATE VIEW worklist_v1 AS
SELECT s.study_instance_uid, s.accession_number, s.patient_id, s.patient_name, s.study_date, s.study_time,
       s.modality_ae_title, s.received_at, s.read_at, s.flagged_at, s.priority, s.state, s.reason, s.suspicion,
       CAST(s.subtypes AS TEXT) AS subtypes, r.model_name, r.model_version, r.sr_sop_instance_uid,
       (SELECT CASE WHEN COUNT(*) = COUNT(o.sent_at) THEN MAX(o.sent_at) END
          FROM outbox o JOIN result_object b ON b.sop_instance_uid = o.sop_instance_uid
         WHERE b.reading_id = s.reading_id) AS delivered_at,
       s.reviewed_at, s.reviewed_by
  FROM study s LEFT JOIN reading r ON r.id = s.reading_id
"""


def upgrade() -> None:
    op.create_table('audit',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('study_instance_uid', sa.Text(), nullable=False),
    sa.Column('actor', sa.Text(), nullable=False),
    sa.Column('action', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('priority', sa.Text(), nullable=False),
    sa.Column('why', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('audit_by_study', 'audit', ['study_instance_uid'], unique=False)

    op.create_table('study',
    sa.Column('study_instance_uid', sa.Text(), nullable=False),
    sa.Column('patient_id', sa.Text(), nullable=False),
    sa.Column('patient_name', sa.Text(), nullable=False),
    sa.Column('patient_birth_date', sa.Text(), nullable=False),
    sa.Column('patient_sex', sa.Text(), nullable=False),
    sa.Column('accession_number', sa.Text(), nullable=False),
    sa.Column('study_date', sa.Text(), nullable=False),
    sa.Column('study_time', sa.Text(), nullable=False),
    sa.Column('study_description', sa.Text(), nullable=False),
    sa.Column('modality_ae_title', sa.Text(), nullable=False),
    sa.Column('received_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('last_received_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('reason_detail', sa.Text(), nullable=True),
    sa.Column('priority', sa.Text(), nullable=False),
    sa.Column('suspicion', sa.Double(), nullable=True),
    sa.Column('subtypes', sa.JSON(), nullable=True),
    sa.Column('reading_id', sa.Integer(), nullable=True),
    sa.Column('read_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('flagged_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('reviewed_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('reviewed_by', sa.Text(), nullable=True),
    sa.Column('lease_owner', sa.Text(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('claim_number', sa.Integer(), nullable=False),
    sa.Column('enqueued_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('retry_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('reprocess_requested_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('reprocess_series_instance_uid', sa.Text(), nullable=True),
    sa.Column('reprocess_model', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('study_instance_uid')
    )
    op.create_index('study_by_accession_number', 'study', ['accession_number'], unique=False)
    op.create_index('study_by_patient_id', 'study', ['patient_id'], unique=False)
    op.create_index('study_by_priority', 'study', ['priority', 'received_at'], unique=False)
    op.create_index('study_with_reprocess_request', 'study', ['study_instance_uid'], unique=False,
                    sqlite_where=sa.text('reprocess_requested_at IS NOT NULL'),
                    postgresql_where=sa.text('reprocess_requested_at IS NOT NULL'))
    op.create_index('study_by_state', 'study', ['state'], unique=False)

    op.create_table('series',
    sa.Column('series_instance_uid', sa.Text(), nullable=False),
    sa.Column('study_instance_uid', sa.Text(), nullable=False),
    sa.Column('modality', sa.Text(), nullable=False),
    sa.Column('series_number', sa.Integer(), nullable=True),
    sa.Column('series_description', sa.Text(), nullable=False),
    sa.Column('revision', sa.Integer(), nullable=False),
    sa.Column('handled_revision', sa.Integer(), nullable=False),
    sa.Column('due_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('exclusion_reason', sa.Text(), nullable=True),
    sa.Column('exclusion_detail', sa.Text(), nullable=True),
    sa.ForeignKeyConstraint(['study_instance_uid'], ['study.study_instance_uid'], ),
    sa.PrimaryKeyConstraint('series_instance_uid')
    )
    op.create_index('series_by_due_at', 'series', ['due_at'], unique=False)
    op.create_index('series_by_study', 'series', ['study_instance_uid'], unique=False)

    op.create_table('instance',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('sop_instance_uid', sa.Text(), nullable=False),
    sa.Column('series_instance_uid', sa.Text(), nullable=False),
    sa.Column('sop_class_uid', sa.Text(), nullable=False),
    sa.Column('transfer_syntax_uid', sa.Text(), nullable=False),
    sa.Column('instance_number', sa.Integer(), nullable=True),
    sa.Column('number_of_frames', sa.Integer(), nullable=False),
    sa.Column('position_mm', sa.JSON(), nullable=True),
    sa.Column('orientation', sa.JSON(), nullable=True),
    sa.Column('file_name', sa.Text(), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('sha256', sa.Text(), nullable=False),
    sa.Column('source_ae_title', sa.Text(), nullable=False),
    sa.Column('received_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('conflict', sa.Boolean(), nullable=False),
    sa.ForeignKeyConstraint(['series_instance_uid'], ['series.series_instance_uid'], ),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('sop_instance_uid', 'sha256', name='instance_once')
    )
    op.create_index('instance_by_series', 'instance', ['series_instance_uid'], unique=False)
    op.create_index('instance_without_conflict', 'instance', ['sop_instance_uid'], unique=True,
                    sqlite_where=sa.text('NOT conflict'), postgresql_where=sa.text('NOT conflict'))

    op.create_table('reading',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('study_instance_uid', sa.Text(), nullable=False),
    sa.Column('series_instance_uid', sa.Text(), nullable=False),
    sa.Column('run_number', sa.Integer(), nullable=False),
    sa.Column('model_name', sa.Text(), nullable=False),
    sa.Column('model_version', sa.Text(), nullable=False),
    sa.Column('weights_sha256', sa.Text(), nullable=False),
    sa.Column('content_sha256', sa.Text(), nullable=False),
    sa.Column('suspicion', sa.Double(), nullable=False),
    sa.Column('operating_points', sa.JSON(), nullable=False),
    sa.Column('priority', sa.Text(), nullable=False),
    sa.Column('subtypes', sa.JSON(), nullable=False),
    sa.Column('caveats', sa.JSON(), nullable=False),
    sa.Column('slices', sa.JSON(), nullable=False),
    sa.Column('timeline', sa.JSON(), nullable=False),
    sa.Column('read_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('superseded', sa.Boolean(), nullable=False),
    sa.Column('sr_sop_instance_uid', sa.Text(), nullable=False),
    sa.Column('sr_series_instance_uid', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['series_instance_uid'], ['series.series_instance_uid'], ),
    sa.ForeignKeyConstraint(['study_instance_uid'], ['study.study_instance_uid'], ),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('series_instance_uid', 'model_name', 'run_number', name='reading_once')
    )
    op.create_index('reading_by_study', 'reading', ['study_instance_uid'], unique=False)

    op.create_table('result_object',
    sa.Column('sop_instance_uid', sa.Text(), nullable=False),
    sa.Column('reading_id', sa.Integer(), nullable=False),
    sa.Column('sop_class_uid', sa.Text(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('position', sa.Integer(), nullable=False),
    sa.Column('file_name', sa.Text(), nullable=False),
    sa.ForeignKeyConstraint(['reading_id'], ['reading.id'], ),
    sa.PrimaryKeyConstraint('sop_instance_uid')
    )
    op.create_index('result_object_by_reading', 'result_object', ['reading_id'], unique=False)

    op.create_table('outbox',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('sop_instance_uid', sa.Text(), nullable=False),
    sa.Column('destination', sa.Text(), nullable=False),
    sa.Column('urgency', sa.Integer(), nullable=False),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('next_attempt_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('lease_owner', sa.Text(), nullable=True),
    sa.Column('lease_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('sent_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('note', sa.Text(), nullable=True),
    sa.ForeignKeyConstraint(['sop_instance_uid'], ['result_object.sop_instance_uid'], ),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('sop_instance_uid', 'destination', name='outbox_once')
    )
    op.create_index('outbox_by_due', 'outbox', ['state', 'next_attempt_at'], unique=False)
    op.execute(WORKLIST_V1)
