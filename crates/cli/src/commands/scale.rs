//! `kiln scale`: how many instances services have, whatever the release asks for.

use crate::{Context, Failure, watch};
use clap::Args;
use kiln_api::Code;
use kiln_api::scale::ScaleRequest;
use kiln_model::{EnvName, ServiceName, limits};
use std::collections::BTreeMap;
use std::str::FromStr;

/// Options of `kiln scale`.
#[derive(Debug, Args)]
#[command(
    after_help = "The number belongs to the environment and holds for later releases too; `default` gives it back to kiln.toml.

Examples:
  kiln scale web=5
  kiln scale web=default api=2 --env staging"
)]
pub struct ScaleArgs {
    /// The environment [default: production]
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
    /// Services with their numbers, or `default`
    #[arg(value_name = "SERVICE=N", required = true)]
    services: Vec<Wanted>,
}

/// `web=5` or `web=default`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    service: ServiceName,
    instances: Option<u32>,
}

impl FromStr for Wanted {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (service, number) = text.split_once('=').ok_or("expected SERVICE=N, as in `web=5`")?;
        let service = ServiceName::new(service).map_err(|e| e.to_string())?;
        let max = limits::INSTANCES_PER_SERVICE_MAX;
        let instances = match number {
            "default" => None,
            number => match number.parse() {
                Ok(n) if n <= max => Some(n),
                _ => return Err(format!("`{number}` is neither `default` nor a number from 0 to {max}")),
            },
        };
        Ok(Self { service, instances })
    }
}

pub(crate) async fn run(context: &Context<'_>, arguments: ScaleArgs) -> Result<(), Failure> {
    let about = context.env_request(&arguments.env)?;
    let instances = unique(arguments.services)?;
    let request = ScaleRequest { project: about.project, env: about.env, instances };
    let view = watch::once(context, async |client| client.scale(&request).await).await?;
    view.waits.iter().for_each(|text| context.out().note(&format!("warning: {text}")));
    context.out().answer(&view, || {
        let line =
            |(service, wanted): (&ServiceName, &u32)| format!("{}: {service} wants {wanted}\n", view.env);
        view.wanted.iter().map(line).collect()
    })
}

fn unique(services: Vec<Wanted>) -> Result<BTreeMap<ServiceName, Option<u32>>, Failure> {
    let mut unique = BTreeMap::new();
    for wanted in services {
        if unique.insert(wanted.service.clone(), wanted.instances).is_some() {
            return Err(Failure::new(Code::Usage, format!("`{}` is given twice", wanted.service)));
        }
    }
    Ok(unique)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_gets_a_number_or_the_default() {
        let parse = |text: &str| text.parse::<Wanted>();
        assert_eq!(parse("web=5").unwrap().instances, Some(5));
        assert_eq!(parse("web=0").unwrap().instances, Some(0));
        assert_eq!(parse("web=default").unwrap().instances, None);
        for bad in ["web", "web=", "=5", "web=-1", "web=251", "WEB=1", "web=1=2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let twice = vec![parse("web=1").unwrap(), parse("web=default").unwrap()];
        assert_eq!(unique(twice).unwrap_err().code(), Code::Usage);
    }
}
