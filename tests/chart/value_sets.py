"""Sets of values that people install with: each is rendered and checked without a server, and by one (tests/e2e)."""

from __future__ import annotations

from typing import Any

MONITORS = "monitoring.coreos.com/v1"

VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one replica": {"controller": {"replicas": 1}},
    "no controller": {"controller": {"replicas": 0}},
    "irsa": {
        "controller": {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/a"}}},
        "worker": {
            "namespaces": ["proteins", "texts"],
            "serviceAccount": {"create": True, "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/b"}},
        },
    },
    "workload identity": {
        "controller": {
            "serviceAccount": {"name": "controls", "annotations": {"iam.gke.io/gcp-service-account": "a@b"}}
        },
        "worker": {
            "serviceAccount": {
                "create": True,
                "name": "works",
                "annotations": {"iam.gke.io/gcp-service-account": "c@d"},
            }
        },
    },
    "accounts of others": {
        "controller": {"serviceAccount": {"create": False, "name": "given"}},
        "worker": {"serviceAccount": {"name": "given"}},
    },
    "namespaced": {"controller": {"watchNamespace": "proteins"}},
    "namespaced without nodes": {
        "controller": {"watchNamespace": "proteins"},
        "rbac": {"nodes": False, "aggregate": False},
        "crds": {"install": False},
        "worker": {"serviceAccount": {"create": True}},
    },
    "no rights": {"rbac": {"create": False}},
    "registry": {
        "imageRegistry": "registry.example/team/",
        "imagePullSecrets": [{"name": "registry"}],
        "controller": {"image": {"tag": "1.2.3", "pullPolicy": "Always"}},
        "worker": {
            "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Never"},
            "serviceAccount": {"create": True},
        },
    },
    "store credentials": {
        "controller": {
            "extraEnv": [
                {"name": "AWS_REGION", "value": "eu-west-1"},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "store", "key": "token"}}},
            ],
            "envFrom": [{"secretRef": {"name": "store"}}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/own", "readOnly": True}],
        }
    },
    "network of the node": {"controller": {"hostNetwork": True, "healthPort": 18080}},
    "placed": {
        "controller": {
            "priorityClassName": "system-cluster-critical",
            "nodeSelector": {"pool": "system"},
            "tolerations": [{"key": "CriticalAddonsOnly", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "controller"}},
                }
            ],
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {}},
            "podAnnotations": {"note": "true"},
            "podLabels": {"team": "proteins"},
            "updateStrategy": {"type": "Recreate"},
        },
        "commonLabels": {"cost": "42"},
    },
    "all of metrics": {
        "metrics": {
            "labels": {"release": "kube-prometheus-stack"},
            "interval": "1m",
            "serviceMonitor": {"enabled": True},
            "podMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "dashboard": {"enabled": True, "namespace": "grafana", "annotations": {"grafana_folder": "Batch"}},
        }
    },
    "network policies": {
        "networkPolicy": {
            "enabled": True,
            "egressPorts": [443, 9000],
            "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
            "scrapeFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        },
        "worker": {"namespaces": ["proteins"]},
    },
    "own settings": {
        "controller": {"logLevel": "DEBUG", "settings": {"apiQps": 7.5, "pollSeconds": None, "apiBurst": 100000}}
    },
    "openshift": {"controller": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None}}},
    "another name": {"fullnameOverride": "irun", "controller": {"watchNamespace": "a"}},
}
