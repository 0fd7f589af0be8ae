-- After a turn that ended in an error. When it was WF002 or WF004, the workflow was taken away or cancelled: the worker
-- does not hold it any more, and there is nothing to report. Otherwise the attempt has failed, and while max_attempts
-- is not reached, the workflow is tried again after a while, from its last checkpoint.
select durable.fail(workflow_id, lease, jsonb_build_object('type', 'psql', 'message', :'error'))
from durable.reclaim(:'worker');
