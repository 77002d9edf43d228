"""Submitting a job to a cluster, and looking after it from here. No torch, no ray: a client speaks HTTP or calls Slurm.

    bundle = bundle_of(job, name="night")        # the job file, its prompt list and images, and the job's id
    target = find_target("slurm")                # or an address, or a name of targets.yaml
    target.submit(bundle)                        # starts the driver there

targets.py    what a target is, and how a name becomes one
bundle.py     what is shipped
ray_jobs.py   Ray clusters, through the Jobs REST API: ray_client.py calls it, ray_token.py finds the token
slurm.py      Slurm, through its commands; slurm_job.sh.j2 is the batch script
kubernetes.py Kubernetes, through KubeRay: kubernetes_manifest.py builds what kuberay.py checks, kubernetes_client.py calls
journal.py    which jobs were submitted from here, and where to
folder.py     the state of a job whose output folder is known
"""
