"""The questions a study report asks the warehouse: every number on the page comes from one of them.

Each is a query with the parameter ``$experiment``; those about latents have ``$per_sae`` as well.
"""

_LATENTS = """
        select site, variant, latent, label, density, mean_activation, max_activation, score
        from latent_cards
        where experiment = $experiment and explanations is not null and density > 0
        qualify row_number() over (
            partition by site, variant
            order by density between 1e-4 and 0.1 desc, score desc nulls last,
                max_activation desc, latent
        ) <= $per_sae
"""

# The headline of a metric is its first score, in the order that metrics list their definitions in.
_HEADLINES = """headlines as (
            select
                metric, min(rowid) as place,
                arg_min(name, rowid) as name, arg_min(definition, rowid) as definition
            from stored.definitions
            where role = 'score' and metric not in (
                'reconstruction', 'sparsity', 'model_loss', 'weights', 'frontier'
            )
            group by metric
        )"""

QUESTIONS: dict[str, str] = {
    "claims": """
        select claim, statement, verdict, place as site, a, b, quantity, is_relative, effect, low,
            high, n, comparison, reason
        from claims where experiment = $experiment
        order by place = '', claim, place, a, b
    """,
    "experiment": """
        select description, config, packages, path, created_at
        from stored.experiments where experiment = $experiment
    """,
    "models": """
        select model, model_fingerprint, family, num_layers, d_model, vocab_size, num_parameters,
            has_lm_head, revision, created_at
        from models
        where (model, model_fingerprint) in (
            select distinct model, model_fingerprint from saes where experiment = $experiment
            union select distinct model, model_fingerprint from latest_metrics
            where experiment = $experiment
        )
        order by created_at desc
    """,
    "leaderboard": """
        select site, variant, kind, objective, d_sae, seed, status, l0, fvu, fvu_stderr, cosine,
            loss_recovered, loss_recovered_mean, delta_lm_loss, delta_lm_loss_stderr, kl_score,
            dead_share, tokens, seconds, sae_id
        from leaderboard where experiment = $experiment
        order by site, fvu nulls last, variant
    """,
    "variants": """
        select * exclude (experiment)
        from variants where experiment = $experiment and num_seeds > 0
        order by site, fvu nulls last, family
    """,
    "layer_groups": """
        select site as sites, num_groups, "group", member, amad
        from layer_groups where experiment = $experiment order by all
    """,
    "site_distances": """
        select site as sites, site_a, site_b, distance, num_tokens
        from site_distances where experiment = $experiment order by all
    """,
    "chosen_contexts": """
        select site, regexp_replace(variant, '-s[0-9]+$', '') as family, rank, score, text
        from chosen_contexts where experiment = $experiment and rank < 8
        qualify variant = min(variant) over (partition by site, family)
        order by site, family, rank
    """,
    "not_measured": """
        select name, reason, count(distinct (site, variant)) as num_saes
        from latest_metrics
        where experiment = $experiment and value is null and variant <> ''
        group by all order by all
    """,
    "frontier": """
        select site, variant, kind, objective, d_sae, l0, fvu, fvu_stderr, delta_lm_loss,
            delta_lm_loss_stderr, is_pareto, is_pareto_in_loss
        from frontier where experiment = $experiment
    """,
    "boundary": """
        select distinct coalesce(params ->> 'site', site) as site, definition,
            try_cast(params ->> 'l0' as double) as l0, value
        from latest_metrics
        where experiment = $experiment and name = 'boundary_loss' and params ->> 'loss' = 'fvu'
        order by all
    """,
    "families": """
        select distinct coalesce(params ->> 'site', site) as site, params ->> 'loss' as loss,
            params ->> 'family_a' as family_a, params ->> 'family_b' as family_b, value, stderr,
            reason
        from latest_metrics
        where experiment = $experiment and name = 'dominance'
        order by all
    """,
    "scores": f"""
        with {_HEADLINES}
        select
            site, variant, metric, name, definition, dial, params, better, value, stderr, n, unit,
            floor, floor_is, ceiling, ceiling_is, reason
        from scorecard join headlines using (metric, name, definition)
        where experiment = $experiment
        order by place, site, try_cast(regexp_extract(dial, '=([0-9.]+)', 1) as double), dial,
            if(better = 'lower', value, -value) nulls last, variant, params
    """,
    "scores_over_seeds": f"""
        with {_HEADLINES}, alone as (
            select
                site, regexp_replace(variant, '-s[0-9]+$', '') as family, metric, name, definition,
                dial, max(stderr) as stderr_of_one,
                string_agg(distinct floor_is, ', ' order by floor_is) as floor_is,
                string_agg(distinct ceiling_is, ', ' order by ceiling_is) as ceiling_is
            from scorecard where experiment = $experiment and value is not null group by all
        )
        select
            site, family, metric, name, definition, dial, better, num_seeds, value,
            -- of one SAE the error over what was sampled, of several that over seeds
            if(num_seeds = 1, stderr_of_one, stderr) as stderr,
            floor, floor_is, ceiling, ceiling_is
        from scorecard_over_seeds
            join headlines using (metric, name, definition)
            join alone using (site, family, metric, name, definition, dial)
        where experiment = $experiment and num_seeds > 0
        order by place, site, try_cast(regexp_extract(dial, '=([0-9.]+)', 1) as double), dial,
            if(better = 'lower', value, -value), family
    """,
    "curves": """
        select site, variant, step, tokens, name, value
        from curves
        where experiment = $experiment
        order by site, variant, name, step
    """,
    "density": """
        select site, variant, try_cast(params ->> 'low' as double) as low,
            try_cast(params ->> 'high' as double) as high, value
        from latest_metrics
        where experiment = $experiment and name = 'log10_density_histogram' and variant <> ''
        order by all
    """,
    "probing": """
        select site, variant, method, k, value, stderr, num_tasks
        from application_summary
        where experiment = $experiment and application = 'probing' and name = 'accuracy'
        order by all
    """,
    "best_probes": """
        select site, task, variant, method, k, accuracy, stderr, rival, rival_accuracy, gain
        from best_probes where experiment = $experiment order by all
    """,
    "steering": """
        select site, variant, method, name, strength, value, stderr, num_tasks
        from application_summary
        where experiment = $experiment and application = 'steering'
            and name in ('overall', 'concept_score', 'fluency')
            and coalesce(split, 'test') = 'test'
        order by all
    """,
    "steering_best": """
        select site, variant, method, value, stderr, num_tasks, num_without_value, reason
        from application_summary
        where experiment = $experiment and application = 'steering' and name = 'best_overall'
        order by site, value desc nulls last, variant, method
    """,
    "selection": """
        select site, variant, method, n, value, stderr
        from application_summary
        where experiment = $experiment and application = 'selection' and name = 'coverage'
            and coalesce(equal, 'documents') = 'documents'
        order by all
    """,
    "selected": """
        select site, variant, method, rank, document, gain, num_tokens, covered, text
        from selections where experiment = $experiment and rank < 5
        order by site, variant, method, rank
    """,
    "not_applied": """
        select application, reason, count(distinct (site, variant)) as num_saes
        from latest_applications
        where experiment = $experiment and value is null
        group by all order by all
    """,
    "latents": f"""{_LATENTS}        order by site, variant, score desc nulls last, latent
    """,
    "explanations": f"""
        with chosen as ({_LATENTS}        )
        select site, variant, latent, method, text, keywords, keyword_scores
        from explanations semi join chosen using (site, variant, latent)
        where experiment = $experiment
        order by all
    """,
    "examples": f"""
        with chosen as ({_LATENTS}        )
        select site, variant, latent, rank, document, peak, tokens, activations, max_activation
        from examples semi join chosen using (site, variant, latent)
        where experiment = $experiment and rank < 3 and coalesce(kind, 'top') = 'top'
        order by site, variant, latent, rank
    """,
    "definitions": """
        select distinct m.name, m.definition, m.version, d.text, d.better, m.unit
        from latest_metrics m left join definitions d using (name, definition, version)
        where m.experiment = $experiment
        order by all
    """,
    "stale": """
        select held_in, site, variant, model, model_fingerprint, current_fingerprint, num_rows
        from stale where experiment = $experiment
    """,
    "provenance": """
        select site, variant, sae_id, artifact_id, status, reason, seed, config, train, device,
            packages, model, model_fingerprint, created_at
        from saes where experiment = $experiment order by site, variant
    """,
}
