//! The code beside the author's function. Spans are those of the author's own types wherever the compiler may object.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, ReturnType};

use crate::options::Options;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Handler,
    Plugin,
}

impl Kind {
    fn attribute(self) -> &'static str {
        match self {
            Kind::Handler => "#[handler]",
            Kind::Plugin => "#[plugin]",
        }
    }

    fn argument(self) -> &'static str {
        match self {
            Kind::Handler => "Request",
            Kind::Plugin => "Init",
        }
    }
}

/// The function, and what is exported; or the function and the error, so that only the mistake is reported.
pub fn expand(kind: Kind, options: TokenStream, item: TokenStream) -> TokenStream {
    let exports = Options::parse(options).and_then(|options| {
        let function: ItemFn = syn::parse2(item.clone())
            .map_err(|_| Error::new(Span::call_site(), format!("{} is for a function", kind.attribute())))?;
        exports(kind, &options, &function)
    });
    let exports = exports.unwrap_or_else(Error::into_compile_error);
    quote! { #item #exports }
}

fn exports(kind: Kind, options: &Options, function: &ItemFn) -> syn::Result<TokenStream> {
    check(kind, function)?;
    let name = &function.sig.ident;
    let result = match &function.sig.output {
        ReturnType::Type(_, result) => result.span(),
        ReturnType::Default => name.span(),
    };
    let call = match function.sig.inputs.first() {
        None => quote_spanned! { name.span() => #name() },
        Some(argument) => {
            // The author's type, so that a wrong one is what the compiler points to.
            let span = match argument {
                FnArg::Typed(typed) => typed.ty.span(),
                FnArg::Receiver(receiver) => receiver.span(),
            };
            let given = quote_spanned! { span => __given };
            quote_spanned! { name.span() => #name(#given) }
        }
    };
    let call = match function.sig.asyncness.is_some() {
        true => quote_spanned! { name.span() => #call.await },
        false => call,
    };
    let private = quote! { ::baton_plugin_api::__private };
    let (spawn, workers) = (options.spawn, options.workers);
    let module = match kind {
        Kind::Handler => {
            let answer = quote_spanned! { result => #private::response(#call) };
            quote! {
                #private::handler::<#private::Bridge, #spawn, #workers, _, _>(|__given: ::baton_plugin_api::Request| async move { #answer })
            }
        }
        Kind::Plugin => {
            let app = quote_spanned! { result => #private::outcome(#call) };
            quote! {
                #private::plugin::<#private::Bridge, #spawn, #workers, _, _, _>(|__given: ::baton_plugin_api::Init| async move { #app })
            }
        }
    };
    let mount = &options.mount;
    Ok(quote! { ::baton_plugin_api::__export! { #mount, #module } })
}

/// What can be told from the signature alone.
fn check(kind: Kind, function: &ItemFn) -> syn::Result<()> {
    let (signature, attribute, argument) = (&function.sig, kind.attribute(), kind.argument());
    let refuse = |place: &dyn ToTokens, text: String| Err(Error::new_spanned(place, text));
    if let Some(second) = signature.inputs.iter().nth(1) {
        let mut text = format!("the function under {attribute} takes nothing or a `{argument}`");
        if kind == Kind::Handler {
            text.push_str("; for a state, use `#[plugin]` with `handler_with(state, function)`");
        }
        return refuse(second, text);
    }
    if let Some(receiver @ FnArg::Receiver(_)) = signature.inputs.first() {
        return refuse(receiver, format!("{attribute} is for a free function, not for a method"));
    }
    if !signature.generics.params.is_empty() {
        return refuse(&signature.generics, format!("the function under {attribute} cannot be generic"));
    }
    if let Some(safety) = signature.safety.to_token_stream().into_iter().next() {
        return refuse(&safety, format!("the function under {attribute} must be safe"));
    }
    if kind == Kind::Plugin && matches!(signature.output, ReturnType::Default) {
        return refuse(
            &signature.ident,
            "the function under #[plugin] returns what serves the requests, such as an axum `Router`".to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: Kind, function: &str) -> String {
        let function: ItemFn = syn::parse_str(function).unwrap();
        exports(kind, &Options::default(), &function).unwrap_err().to_string()
    }

    #[test]
    fn a_signature_that_cannot_be_is_refused_in_plain_words() {
        use Kind::{Handler, Plugin};
        for (kind, function, expected) in [
            (Handler, "fn a(_: Request, _: State) {}", "handler_with"),
            (Handler, "fn a<T>(_: Request) {}", "cannot be generic"),
            (Handler, "fn a(&self) {}", "free function"),
            (Handler, "unsafe fn a() {}", "must be safe"),
            (Plugin, "fn a(_: Init, _: u8) -> R {}", "takes nothing or a `Init`"),
            (Plugin, "fn a(_: Init) {}", "returns what serves"),
        ] {
            let error = error(kind, function);
            assert!(error.contains(expected), "{function}: {error}");
        }
    }

    #[test]
    fn what_is_no_function_keeps_its_code_beside_the_error() {
        let out = expand(Kind::Handler, TokenStream::new(), quote! { struct A; }).to_string();
        assert!(out.contains("struct A") && out.contains("is for a function"), "{out}");
    }

    #[test]
    fn all_forms_are_exported() {
        for function in ["fn a() -> R {}", "async fn a() -> R {}", "fn a(x: Y) -> R {}", "async fn a(x: Y) -> R {}"] {
            for kind in [Kind::Handler, Kind::Plugin] {
                let out = expand(kind, TokenStream::new(), function.parse().unwrap()).to_string();
                assert!(out.contains("__export !"), "{out}");
            }
        }
    }
}
